"""Owns files of many slices: the frames of enhanced CT, the slices of a NIfTI volume, each with header and HU.

It never lists or writes a place, and knows neither windows nor labels; a codec is the `dicom` department's.
"""
