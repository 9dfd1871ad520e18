"""Owns when a number may be believed: portraits of series, whether one looks like what a model was trained on, what has
moved since, and which labels are doubtful.

Pure numpy and tables: it never imports TensorFlow, and it reads and writes nothing but the file of a run's scope.
"""
