"""TensorFlow without its start-up lines, which are about what it was built with and not about the user's work."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ich_tfrecords import environment
from trainer.shell import tf_environment


def import_tensorflow() -> None:
    """Import TensorFlow and Keras; what they print on the way is shown only if that fails.

    Where there is no GPU, their later complaint about that is kept away too. What the environment and Keras's own
    file would change about the numbers is left aside, and told on stderr. Raises `WrongUse`.
    """
    if "tensorflow" in sys.modules:
        return
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    decided = tf_environment.decide(os.environ, gpus)
    notes = decided.notes + tf_environment.keras_notes(tf_environment.keras_json(os.environ))
    for note in notes:
        print(note, file=sys.stderr)
    environment.apply(os.environ, decided.changes)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if gpus else "3")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # weights are read only, and many shares have no locks
    with _without_keras_json():
        _import()
    logging.getLogger("tensorflow").addFilter(_worth_telling)


def _worth_telling(record: logging.LogRecord) -> bool:
    """Not that functions were traced: each model is, once, and five of them look to TensorFlow like one of five."""
    return "triggered tf.function retracing" not in record.getMessage()


@contextlib.contextmanager
def _without_keras_json() -> Iterator[None]:
    """Give Keras a home that holds no file and takes none while it is imported, which is when it looks."""
    before = os.environ.get("KERAS_HOME")
    os.environ["KERAS_HOME"] = os.devnull
    try:
        yield
    finally:
        environment.apply(os.environ, {"KERAS_HOME": before})


def _import() -> None:
    with kept_back():  # the lines come from C++, below sys.stderr
        import keras  # noqa: F401
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def kept_back() -> Iterator[None]:
    """What the block and the libraries below it write to stderr is shown only if it fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            os.dup2(kept, 2)
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
