"""Owns a data set opened: slices of a split, their series, readers, the order of an epoch, augmentation, batches.

It never knows a model: what it hands on is images, labels and weights.
"""
