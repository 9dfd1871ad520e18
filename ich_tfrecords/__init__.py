"""Head-CT slices to TFRecords: one definition of the pixels, from YAML to the served model."""

__version__ = "0.1.0"
