"""Owns what a person sees of a data set: montage, charts, the page, progress lines, and exports for other tools.

It never changes a data set and never computes what a model would rely on.
"""
