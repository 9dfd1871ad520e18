"""Owns the competition's archive: token, rules, room on the disk, a download that goes on after any stop.

It never unpacks the archive: `storage` reads it as it is.
"""
