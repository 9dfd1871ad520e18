"""Owns what a data-set directory is: records, splits, shards, manifest, card, which series of
a study it holds, and the check of every promise.

It never reads DICOM and never runs a conversion: it describes and verifies what one leaves behind.
"""
