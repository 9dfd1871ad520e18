"""Owns label files: text in the layouts people have -> what each says, of which slices, and what follows for them.

It never opens a slice and never decides a split.
"""
