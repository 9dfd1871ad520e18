"""Beam pipelines that turn CT slices into TFRecord data sets."""

import logging
import sys

from ich_tfrecords import environment


def _import_beam_quietly() -> None:
    """Beam warns at its first import of Google Cloud libraries, which only the extra `gcp` installs."""
    if sys.flags.optimize > 1:
        print("convert: PYTHONOPTIMIZE=2 (or -OO) takes texts away that Apache Beam needs; unset it", file=sys.stderr)
        sys.exit(2)
    environment.settle()
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        import apache_beam  # noqa: F401
    finally:
        root.setLevel(level)


_import_beam_quietly()
