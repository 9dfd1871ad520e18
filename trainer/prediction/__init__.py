"""Owns DICOM -> triage: slices as batches, studies by urgency, the folder of results and its pictures.

It never trains and never needs a label.
"""
