"""Beam pipelines that turn CT slices into TFRecord data sets."""

import logging


def _import_beam_quietly() -> None:
    """Beam warns at its first import of Google Cloud libraries, which only the extra `gcp` installs."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        import apache_beam  # noqa: F401
    finally:
        root.setLevel(level)


_import_beam_quietly()
