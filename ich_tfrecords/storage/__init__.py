"""Owns where bytes are and how they get there whole: folders, zips and buckets listed and read, locks, atomic writes.

It never looks into a slice: bytes are bytes here.
"""
