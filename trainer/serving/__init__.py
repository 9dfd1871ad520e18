"""Owns the SavedModel: pixels and probabilities in plain TensorFlow ops, and the card that goes with it.

It never needs this package where the model is served.
"""
