"""Owns what all commands share: parsing, exit codes, progress, quiet, the folder lock, the platform's variables.

It never computes a number and never opens a data set.
"""
