"""Owns what a run tells a tracking server: its settings and numbers, as they come.

It never decides about a run, never ends one because a server fails, and never sends slices, pictures or paths.
"""
