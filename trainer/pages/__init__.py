"""Owns the pages and figures of results: evaluation and comparison, in one file each without script or request.

It never computes a measure: it shows what `results` gives.
"""
