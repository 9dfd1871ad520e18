"""Owns classical classifiers on the vectors of a slice model: their rows, their fit by scikit-learn, what comes out.

It never makes a network of its own, and it never writes or reads an estimator: what is kept is the last layer of a
model.
"""
