"""Owns DICOM -> triage: slices as batches, studies by urgency, the folder of results, its pictures, and
what a PACS gets of it.

It never trains and never needs a label.
"""
