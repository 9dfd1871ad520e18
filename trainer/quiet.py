"""TensorFlow without its start-up lines, which are about what it was built with and not about the user's work."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def import_tensorflow() -> None:
    """Import TensorFlow and Keras; what they print on the way is shown only if that fails.

    Where there is no GPU, their later complaint about that is kept away too.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if list(Path("/dev").glob("nvidia[0-9]*")) else "3")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # weights are read only, and many shares have no locks
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)  # the lines come from C++, below sys.stderr
        try:
            import keras  # noqa: F401
            import tensorflow  # noqa: F401
        except Exception:
            os.dup2(kept, 2)
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
