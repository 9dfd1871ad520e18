"""Owns networks, their first weights, a trained model on disk with all that is needed to use it, and where it looks.

It never trains and never reads a slice.
"""
