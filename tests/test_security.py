"""The promises of docs/security.md that no other test holds."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import odd_dataset
import pytest
from dicom_files import dicom_file, head_slice, slice_elements

from beam_pipelines.transforms import IndexParts
from ich_tfrecords import inspect
from ich_tfrecords.conversion.job import WorkDir
from ich_tfrecords.conversion.patient_key import patient_key
from ich_tfrecords.dataset import manifest
from ich_tfrecords.views import html_page
from trainer.data.dataset import open_dataset
from trainer.models import model_file
from trainer.shell.problems import WrongUse
from trainer.training import checkpoints

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for name in ("ich_tfrecords", "beam_pipelines", "trainer") for path in sorted((ROOT / name).rglob("*.py"))
]


def file_of(uid: str, **changes: bytes) -> bytes:
    return dicom_file(slice_elements(head_slice(), SOPInstanceUID=uid.encode(), **changes))


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- what no source file may do ---

RUNS_CODE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
UNSAFE_YAML = {f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "Loader", "UnsafeLoader")}
UNPACKS = {"shutil.unpack_archive", "extract", "extractall"}  # as a method, whatever it is called on
PUBLIC_NAME = {"tempfile.mktemp"}
UNSAFE_KERAS = {"keras.config.enable_unsafe_deserialization"}
FORBIDDEN = RUNS_CODE | UNSAFE_YAML | UNPACKS | PUBLIC_NAME | UNSAFE_KERAS
UNCAPPED = {"gzip.decompress", "zlib.decompress", "bz2.decompress", "lzma.decompress"}
FLAGS = {("allow_pickle", True), ("shell", True), ("safe_mode", False)}
PICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def offences(source: str, forbidden: set[str]) -> list[str]:
    """Uses of `forbidden` names, of `FLAGS` and of modules that read pickles, as `line: what`."""
    tree = ast.parse(source)
    known = dict(imports(tree))
    return [f"{line}: {what}" for node in ast.walk(tree) for line, what in found_in(node, known, forbidden)]


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Name in this file and the dotted name that it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def found_in(node: ast.AST, known: dict[str, str], forbidden: set[str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        yield from ((node.lineno, f"import {name}") for name in modules if name and name.split(".")[0] in PICKLES)
    if isinstance(node, ast.Call):
        flags = [(word.arg, word.value.value) for word in node.keywords if isinstance(word.value, ast.Constant)]
        yield from ((node.lineno, f"{name}={value}") for name, value in flags if (name, value) in FLAGS)
    if isinstance(node, (ast.Name, ast.Attribute)):
        begin, _, rest = ast.unparse(node).partition(".")
        full = f"{known.get(begin, begin)}.{rest}".rstrip(".")
        method = node.attr if isinstance(node, ast.Attribute) else ""
        if full in forbidden or method in forbidden & UNPACKS:
            yield node.lineno, full


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_file_runs_or_unpacks_what_it_reads(path):
    assert offences(path.read_text(encoding="utf-8"), FORBIDDEN) == []


@pytest.mark.slow
def test_nothing_is_inflated_without_a_cap():
    assert [path.name for path in SOURCES if offences(path.read_text(encoding="utf-8"), UNCAPPED)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.load(text)",
        "from yaml import unsafe_load as read\nread(text)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import pickle",
        "from joblib import load",
        "def f():\n    import numpy as np\n    return np.load(path, allow_pickle=True)",
        "import subprocess\nsubprocess.run(words, shell=True)",
        "import os\nos.system(words)",
        "eval(words)",
        "call = exec",
        "import tempfile as t\nt.mktemp()",
        "import zipfile\nzipfile.ZipFile(path).extractall(folder)",
        "import keras\nkeras.models.load_model(path, safe_mode=False)",
        "from keras import config\nconfig.enable_unsafe_deserialization()",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert len(offences(source, FORBIDDEN)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load(text)",
        "import re\nre.compile(words)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import pyarrow.compute as pc\npc.extract_regex(column, words)",
    ],
)
def test_the_search_leaves_the_rest_alone(source):
    assert offences(source, FORBIDDEN) == []


# --- files from strangers: archives, models, checkpoints ---


def test_member_names_that_climb_stay_names(tmp_path, convert):
    """Through a whole conversion: nothing is written outside of --output."""
    names = ["../../up.dcm", "/abs.dcm", "a/../../b.dcm", "c\\..\\d.dcm"]
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, file_of(f"1.2.{number}"))
        archive.writestr("../bad.dcm", b"")
    flags = ("--input", tmp_path / "in.zip", "--labels", "none", "--spec", "unlabelled")
    assert convert(*flags, "--output", tmp_path / "a" / "b" / "out", "--max_reject_fraction", 0.5) == 0
    assert {path.parts[:3] for path in map(Path, files_below(tmp_path))} == {("in.zip",), ("a", "b", "out")}
    assert manifest.read(tmp_path / "a" / "b" / "out").slices == len(names)
    assert "../bad.dcm,," in (tmp_path / "a" / "b" / "out" / manifest.REJECTS).read_text()


class Runs:
    """Makes the file `path` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_a_pickle_is_refused(tmp_path):
    """One with a right sha256, for that is no signature: anybody can compute it."""
    out, mark = io.BytesIO(), tmp_path / "ran"
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = b"0" * 64
        archive.writestr("state.json", json.dumps({"format": 1, "names": ["a"], "dtypes": ["object"], "state": {}}))
        with archive.open("arrays/00000.npy", "w") as member:
            np.lib.format.write_array(member, np.array([Runs(mark)], object), allow_pickle=True)
    body = out.getvalue()[:-64]
    path = tmp_path / "step-000000001.npz"
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(checkpoints.DamagedCheckpoint, match="allow_pickle"):
        checkpoints.load(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:You are saving a model")
def test_a_model_file_with_python_in_it_is_refused(tmp_path):
    mark = tmp_path / "ran"
    layer = keras.layers.Lambda(lambda x, place=str(mark): __import__("os").mkdir(place) or x, output_shape=(8,))
    model = keras.Sequential([layer])  # not called yet, so the function has not run
    model.save(tmp_path / model_file.MODEL)
    with pytest.raises(WrongUse, match="Lambda"):
        model_file.load_model(tmp_path, None)
    assert not mark.exists()


def test_a_model_file_that_names_a_function_of_another_package_is_refused(tmp_path):
    mark, plain = tmp_path / "ran", tmp_path / "plain.keras"
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)]).save(plain)
    call = {"module": "subprocess", "class_name": "Popen", "config": {"args": ["mkdir", str(mark)]}}
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / model_file.MODEL, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, json.dumps(json.loads(data) | call) if name == "config.json" else data)
    with pytest.raises(WrongUse, match="Could not locate class 'Popen'"):
        model_file.load_model(tmp_path, None)
    assert not mark.exists()


# --- a data set from a stranger ---


def hostile_manifest(folder: Path, change) -> None:
    """Change the values of a manifest and seal it again, which anybody can."""
    values = manifest.read_json(folder)
    change(values)
    (folder / manifest.MANIFEST).write_text(json.dumps(manifest.sealed(values)))


def climbing_split(values: dict) -> None:
    values["splits"]["../../evil"] = values["splits"].pop("train")
    for shard in values["shards"]:
        shard["split"] = shard["split"].replace("train", "../../evil")


def climbing_shard(values: dict) -> None:
    values["shards"][0]["name"] = "../../evil"


def climbing_fingerprint(values: dict) -> None:
    values["fingerprint"] = "/../../evil"


@pytest.fixture
def strange(tmp_path) -> Path:
    (tmp_path / "sets").mkdir()
    return odd_dataset.make(tmp_path / "sets" / "strange")


@pytest.mark.parametrize("change", [climbing_split, climbing_shard, climbing_fingerprint])
def test_a_manifest_whose_names_climb_is_refused(strange, change):
    hostile_manifest(strange, change)
    with pytest.raises(manifest.DatasetError):
        manifest.read(strange)


def test_export_writes_below_its_output_alone(strange, tmp_path):
    before = files_below(tmp_path)
    hostile_manifest(strange, climbing_split)
    (tmp_path / "a").mkdir()
    inspect.main(["export", str(strange), "--output", str(tmp_path / "a" / "png")])
    assert {name for name in files_below(tmp_path) - before if not name.startswith("a/png/")} == set()


def test_a_copy_of_a_bucket_stays_in_its_folder(strange, tmp_path, gcs):
    hostile_manifest(strange, climbing_shard)
    name = gcs.bucket()
    there = gcs.client().bucket(name)
    for path in strange.iterdir():
        there.blob(f"set/{path.name}").upload_from_filename(path)
    before = files_below(tmp_path)
    with pytest.raises(WrongUse, match="no plain file name"):
        open_dataset(f"gs://{name}/set", tmp_path / "a" / "cache", lambda line: None)
    assert files_below(tmp_path) == before


def test_verify_reads_no_file_that_a_manifest_names_elsewhere(strange, capsys):
    def climbing_file(values: dict) -> None:
        values["files"]["../../secret"] = "0" * 64

    hostile_manifest(strange, climbing_file)
    assert inspect.main(["verify", str(strange)]) == 2
    assert "files names '../../secret', no plain file name" in capsys.readouterr().err


# --- what is secret ---


def test_the_key_is_in_no_work_file_and_on_no_screen(tmp_path, convert, capfd):
    """After a run that failed, whose work directory stays; a finished one is in test_convert."""
    folder, key = tmp_path / "in", tmp_path / "key"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(file_of("1.2.3", PatientID=b"MRN-0815"))
    (folder / "bad.dcm").write_bytes(b"")
    flags = ("--input", folder, "--labels", "none", "--spec", "unlabelled", "--patient_key_file", key)
    assert convert(*flags, "--output", tmp_path / "out") == 1
    assert key.stat().st_mode & 0o777 == 0o600
    secret = key.read_bytes().strip()
    forms = {secret, bytes.fromhex(secret.decode()), b"MRN-0815"}
    work = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"job.json", "lock"} <= {path.name for path in work}
    told = "".join(capfd.readouterr()).encode()
    for form in forms:
        assert form not in told
        assert not [path for path in work if form in path.read_bytes()]


def test_the_key_is_made_private_whatever_the_umask(tmp_path, convert):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(file_of("1.2.3"))
    before = os.umask(0)
    try:
        flags = ("--input", tmp_path / "in", "--labels", "none", "--spec", "unlabelled")
        assert convert(*flags, "--patient_key_file", tmp_path / "key", "--output", tmp_path / "out") == 0
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_where_files_have_no_modes_is_told(tmp_path, convert, capsys, monkeypatch):
    """As on FAT, CIFS or a mounted bucket, where every file has the mode of the mount."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(file_of("1.2.3"))
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777, **more: real(path, flags, mode | 0o644, **more))
    flags = ("--input", tmp_path / "in", "--labels", "none", "--spec", "unlabelled")
    assert convert(*flags, "--patient_key_file", tmp_path / "key", "--output", tmp_path / "out") == 0
    assert "others may read it, since its file system keeps no mode 0600" in capsys.readouterr().err


def test_no_step_carries_its_key(tmp_path):
    """Steps are pickled into job graphs, which clusters keep and show; tracebacks print them by their repr."""
    secret = b"0123456789abcdef0123456789abcdef"
    (tmp_path / "key").write_bytes(secret)
    key = patient_key("salt", tmp_path / "key")
    assert key.secret() == secret
    step = IndexParts(WorkDir(tmp_path / "out"), key, ("original",))
    for text in (repr(step).encode(), pickle.dumps(step)):
        assert b"IndexParts" in text
        assert secret not in text


def test_a_key_that_changes_while_workers_run_is_seen(tmp_path):
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    key = patient_key("salt", tmp_path / "key")
    (tmp_path / "key").write_bytes(b"0123456789abcdeF")
    with pytest.raises(OSError, match="the patient key changed"):
        key.secret()


# --- what is shown ---


def test_no_python_makes_markup():
    """Templates do, which escape; charts alone are drawn in Python."""
    makers = [path.name for path in SOURCES if re.search(r"</\w+>|<html|<script", path.read_text(encoding="utf-8"))]
    assert makers == ["charts.py"]


def test_the_policy_of_a_page_forbids_scripts_and_requests():
    page = html_page.templates(html_page.OWN).get_template("base.html").render(title="<script>alert(1)</script>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in page
    assert "<script" not in page


def test_a_file_name_commands_no_terminal(tmp_path, convert, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "\x1b[2Jx\ny.dcm").write_bytes(file_of("1.2.3"))
    (tmp_path / "in" / "z.dcm").write_bytes(file_of("z"))
    names = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
    (tmp_path / "labels.csv").write_text("\n".join(["ID,Label", *(f"z_{name},0" for name in names), ""]))
    assert convert("--input", tmp_path / "in", "--labels", tmp_path / "labels.csv", "--output", tmp_path / "out") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2  # how many files there are, and the error
    assert told[1].startswith("convert: 1 of 2 files have no label")
    assert "\x1b" not in told[1]
