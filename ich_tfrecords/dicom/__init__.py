"""Owns the bytes of a slice file -> ids, place and HU, or a typed problem; every codec; and the writer of test files.

It never lists, opens or writes a place, and knows neither windows nor labels.
"""
