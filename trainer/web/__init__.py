"""Owns the web application: who may ask, what is taken in, and what is answered, as pages and as JSON.

It never loads a model and never imports TensorFlow: the worklist's own process does, and this one stays small.
"""
