"""Owns numbers: log odds, calibration, thresholds, intervals, measures, comparison, the competition's metric.

Pure numpy: it never imports TensorFlow, and it reads and writes nothing but the table of predictions and the vectors
of slices.
"""
