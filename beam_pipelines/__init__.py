"""Beam pipelines that turn CT slices into TFRecord data sets."""
