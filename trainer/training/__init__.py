"""Owns one run: settings, devices, steps, loop, checkpoints, what the run writes, and its end with calibration.

It never reads DICOM and never draws a page of results.
"""
