"""Owns the way from a listing to a data set: index, plan, the work of one Beam element, `.work`, the commit.

It never imports Beam or TensorFlow: whoever runs its steps, and on how many machines, decides nothing here.
"""
