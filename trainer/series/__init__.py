"""Owns the series model: what it is made of, how it is trained and scored, and how it blends with its slice model.

It never reads DICOM and never draws a page; the loop, the checkpoints and the ends of a run are `training`'s.
"""
