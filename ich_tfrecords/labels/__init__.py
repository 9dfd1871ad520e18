"""Owns label files: CSV text in the layouts people have -> one row an image, which slice a row belongs to, its stratum.

It never opens a slice and never decides a split.
"""
