"""TensorFlow comes without a word, and with all its words when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SETTINGS = ("TF_CPP_MIN_LOG_LEVEL", "GRPC_VERBOSITY", "KERAS_BACKEND")


def python(code: str, *path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A process without TensorFlow's settings; `path` goes before all other packages."""
    plain = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    plain["PYTHONPATH"] = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**plain, **environ}, check=False
    )


@pytest.mark.slow
def test_no_word_of_the_import_or_the_first_tensor():
    code = "from trainer.shell import quiet; quiet.import_tensorflow(); import tensorflow as tf, keras\n"
    code += "print(int(tf.reduce_sum(tf.ones(3))), keras.backend.backend())"
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 tensorflow\n", "")


@pytest.mark.slow
def test_models_that_are_traced_once_each_are_no_warning_and_other_words_stay():
    code = "from trainer.shell import quiet; quiet.import_tensorflow(); import tensorflow as tf\n"
    code += "def made(): return tf.function(lambda x: x + 1)\n"
    code += "[made()(tf.ones(2)) for _ in range(9)]; tf.get_logger().warning('another word')"
    done = python(code)
    assert (done.returncode, done.stderr.splitlines()) == (0, ["WARNING:tensorflow:another word"])


@pytest.mark.slow
def test_keras_reads_no_file_and_its_home_is_as_before(tmp_path):
    (tmp_path / "keras.py").write_text("import os\nprint(os.environ['KERAS_HOME'])")
    (tmp_path / "tensorflow.py").write_text("")
    (tmp_path / "keras.json").write_text('{"floatx": "float16"}')
    code = "import os; from trainer.shell import quiet; quiet.import_tensorflow(); print(os.environ.get('KERAS_HOME'))"
    done = python(code, tmp_path, KERAS_HOME=str(tmp_path))
    assert done.stdout == f"{os.devnull}\n{tmp_path}\n"
    said = f'{tmp_path}/keras.json is left aside, since numbers would depend on it: floatx "float16"\n'
    assert (done.returncode, done.stderr) == (0, said)


@pytest.mark.slow
def test_weights_can_be_read_where_nothing_can_be_locked(tmp_path):
    """To HDF5 a lock that another one holds is what a share without locks is: the file does not open."""
    code = f"""
import fcntl, sys
if sys.argv[1:]:
    from trainer.shell import quiet; quiet.import_tensorflow()
import h5py
path = {str(tmp_path / "weights.h5")!r}
with open(path, "ab") as held:
    h5py.File(path, "w").close()
    fcntl.flock(held, fcntl.LOCK_EX)
    print(len(h5py.File(path, "r")))
"""
    plain = {key: value for key, value in os.environ.items() if key != "HDF5_USE_FILE_LOCKING"}
    plain["PYTHONPATH"] = str(ROOT)
    without, here = (
        subprocess.run([sys.executable, "-c", code, *more], capture_output=True, text=True, env=plain, check=False)
        for more in ((), ("ours",))
    )
    assert "unable to lock file" in without.stderr
    assert (here.stdout, here.stderr) == ("0\n", "")


@pytest.mark.slow
def test_what_an_import_says_is_shown_when_it_fails(tmp_path):
    """Below Python as well, where the C++ of TensorFlow speaks."""
    (tmp_path / "keras.py").write_text("")
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'no such library\\n')\nraise ImportError('broken')\n"
    )
    done = python("from trainer.shell import quiet; quiet.import_tensorflow()", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("no such library\n")
    assert done.stderr.endswith("ImportError: broken\n")


@pytest.mark.slow
def test_what_a_good_import_says_is_left_out_and_stderr_works_again(tmp_path):
    (tmp_path / "keras.py").write_text("")
    (tmp_path / "tensorflow.py").write_text("import os, sys\nos.write(2, b'noise')\nprint('noise', file=sys.stderr)\n")
    code = "import sys; from trainer.shell import quiet; print('before', file=sys.stderr)\n"
    code += "quiet.import_tensorflow(); print('after', file=sys.stderr)"
    done = python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "before\nafter\n")


@pytest.mark.slow
def test_how_much_is_said_is_up_to_the_user_and_the_backend_is_not(tmp_path):
    (tmp_path / "keras.py").write_text("")
    (tmp_path / "tensorflow.py").write_text("")
    code = "import os; from trainer.shell import quiet; quiet.import_tensorflow(); "
    code += f"print(*map(os.environ.get, {SETTINGS}))"
    given = {"TF_CPP_MIN_LOG_LEVEL": "0", "GRPC_VERBOSITY": "DEBUG", "KERAS_BACKEND": "jax"}
    assert python(code, tmp_path, **given).stdout == "0 DEBUG tensorflow\n"
    level, verbosity, backend = python(code, tmp_path).stdout.split()
    assert level in ("2", "3")
    assert (verbosity, backend) == ("NONE", "tensorflow")
