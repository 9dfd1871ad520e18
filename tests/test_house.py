"""The house of docs/architecture.md: who may import whom, one definition for a value, light workers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# room -> rooms of ich_tfrecords that it may import
MAY_IMPORT = {
    "environment": set(),
    "spec": set(),
    "buckets": set(),
    "bucket_path": {"buckets"},
    "file_system": set(),
    "file_lock": {"file_system"},
    "bucket_lock": {"bucket_path", "buckets", "file_lock"},
    "bucket_ranges": {"buckets"},
    "bucket_walk": {"bucket_path", "bucket_ranges", "buckets", "folder_walk", "packed", "zip_directory"},
    "object_reader": {"bucket_path", "buckets"},
    "atomic": {"bucket_path", "buckets", "file_system"},
    "pixels": {"spec"},
    "tissue": set(),
    "bleeds": {"tissue"},
    "phantom": {"bleeds", "tissue"},
    "zip_names": set(),
    "zip_directory": {"bucket_path", "packed", "zip_names"},
    "names": set(),
    "packed": set(),
    "label_csv": {"names"},
    "labels": {"label_csv", "names", "spec", "plural"},
    "label_join": {"labels", "names", "plural"},
    "splits": {"spec"},
    "shards": {"spec", "splits"},
    "records": {"spec"},
    "problems": set(),
    "progress_bar": set(),
    "download": {"atomic", "file_system", "progress_bar"},
    "kaggle": {"bucket_path", "download", "environment", "zip_directory"},
    "csv_text": set(),
    "rejects": {"csv_text"},
    "plural": set(),
    "html_page": set(),
    "slice_header": {"problems"},
    "cells": {"pixels", "slice_header"},
    "jpeg_lossless": {"cells"},
    "codestream": {"cells", "jpeg_lossless", "slice_header"},
    "dicom_slow": {"cells", "codestream", "slice_header"},
    "dicom": {"cells", "dicom_slow", "pixels", "slice_header"},
    "slice_reader": {"bucket_path", "buckets", "object_reader", "problems", "zip_directory"},
    "folder_walk": {"packed", "zip_directory"},
    "listing_rows": {"bucket_path", "buckets", "folder_walk", "slice_reader", "zip_directory"},
    "sources": {
        "bucket_path",
        "bucket_walk",
        "buckets",
        "folder_walk",
        "listing_rows",
        "names",
        "packed",
        "slice_reader",
        "zip_directory",
        "plural",
    },
    "tfds": {"records", "spec"},
    "group_notes": {"plural"},
    "repeats": set(),
    "plan": {
        "group_notes",
        "label_join",
        "labels",
        "problems",
        "records",
        "rejects",
        "repeats",
        "shards",
        "sources",
        "spec",
        "splits",
    },
    "patient_key": {"bucket_path", "splits"},
    "card": {"bucket_path", "manifest", "plural"},  # for its types only
    "manifest": {"atomic", "bucket_path", "card", "plan", "rejects", "spec", "splits", "tfds"},
    "verify": {"atomic", "bucket_path", "manifest", "records", "splits", "tfds"},
    "job": {"atomic", "bucket_lock", "bucket_path", "buckets", "file_lock", "manifest", "plan", "spec"},
    "conversion": {
        "atomic",
        "dicom",
        "job",
        "manifest",
        "patient_key",
        "pixels",
        "plan",
        "records",
        "repeats",
        "sources",
        "spec",
        "splits",
        "problems",
    },
    "dicom_writer": set(),
    "synthetic_defects": {"dicom_writer", "synthetic_plan"},
    "synthetic_plan": {"bleeds", "dicom_writer", "phantom"},
    "synthetic": {"dicom_writer", "environment", "phantom", "synthetic_defects", "synthetic_plan"},
    "summary": {"bucket_path", "manifest"},
    "charts": {"spec", "summary"},
    "montage": {"atomic", "bucket_path", "manifest", "records", "spec"},
    "export": {"atomic", "bucket_path", "manifest", "montage", "records", "spec"},
    "report": {"atomic", "bucket_path", "charts", "html_page", "manifest", "montage", "spec", "summary"},
    "inspect": {
        "atomic",
        "bucket_path",
        "environment",
        "export",
        "manifest",
        "montage",
        "report",
        "summary",
        "verify",
        "plural",
    },
}
THIRD_PARTY = {
    "spec": {"yaml"},
    "pixels": {"numpy"},
    "label_csv": {"numpy", "pyarrow"},
    "labels": {"numpy", "pyarrow"},
    "splits": {"numpy", "pyarrow"},
    "group_notes": {"numpy", "pyarrow"},
    "repeats": {"numpy", "pyarrow"},
    "shards": {"numpy", "pandas"},
    "records": {"numpy", "google", "google_crc32c", "tensorflow"},
    "slice_header": set(),
    "cells": {"numpy"},
    "dicom": {"numpy"},
    "dicom_slow": {"numpy", "pydicom"},
    "codestream": {"numpy", "jpeg_ls", "openjpeg"},
    "jpeg_lossless": {"numpy"},
    "slice_reader": {"problems", "isal", "google_crc32c"},
    "buckets": {"google", "requests", "urllib3"},
    "folder_walk": set(),
    "packed": set(),
    "names": {"numpy", "pyarrow"},
    "label_join": {"numpy", "pyarrow"},
    "listing_rows": {"numpy", "pyarrow"},
    "download": set(),
    "kaggle": {"pyarrow"},
    "sources": {"numpy", "pyarrow"},
    "plan": {"numpy", "pyarrow"},
}

# room of the trainer -> rooms of the trainer, and of ich_tfrecords, that it may import
TRAINER_MAY_IMPORT = {
    "problems": set(),
    "quiet": {"tf_environment", "environment"},
    "tf_environment": {"problems", "environment"},
    "pace": set(),
    "display": {"progress_bar"},
    "hparams": {"problems", "sampling", "spec"},
    "vertex": {"problems"},
    "sampling": {"problems", "spec"},
    "augment": {"problems", "sampling"},
    "cache": {"problems", "atomic", "bucket_path", "buckets", "manifest"},
    "shard_reader": {"dataset", "problems", "records", "spec"},  # dataset for its types only
    "dataset": {"cache", "environment", "problems", "shard_reader", "manifest", "spec", "splits"},
    "shard_stream": {"dataset", "problems", "sampling", "shard_reader", "records"},
    "input_pipeline": {
        "augment",
        "dataset",
        "problems",
        "sampling",
        "shard_reader",
        "shard_stream",
        "records",
        "spec",
    },
    "model_weights": {"problems", "environment"},
    "models": {"model_weights", "problems"},
    "losses": {"problems"},
    "joint": {"probability"},
    "metrics": {"joint", "probability", "problems"},
    "optimizers": {"hparams"},
    "waiting": {"problems", "vertex"},
    "strategy": {"waiting", "hparams", "input_pipeline", "problems", "vertex"},
    "checkpoints": {"problems", "atomic"},
    "averages": {"checkpoints"},
    "steps": {"averages", "losses", "metrics", "optimizers", "strategy"},
    "state": {"metrics", "steps"},
    "saver": {"checkpoints", "hparams", "problems", "state"},
    "evaluation": {"metrics"},
    "folder_lock": {"problems", "file_lock"},
    "run_dir": {"folder_lock", "problems", "atomic", "montage"},
    "scalars": {"problems"},
    "input_page": {"montage"},
    "loop": {
        "dataset",
        "display",
        "evaluation",
        "hparams",
        "input_pipeline",
        "joint",
        "metrics",
        "optimizers",
        "pace",
        "problems",
        "run_dir",
        "saver",
        "scalars",
        "state",
        "steps",
        "strategy",
    },
    "probability": set(),
    "command": {"problems", "environment"},
    "progress_line": {"display", "progress_bar"},
    "calibration": {"probability", "problems"},
    "competition": {"probability", "problems", "label_csv", "spec"},
    "thresholds": {"bootstrap"},
    "predictions": {"problems", "atomic", "splits"},
    "bootstrap": {"sampling"},
    "study_level": {"predictions"},
    "ratings": {"bootstrap", "calibration", "probability"},
    "curves": {"bootstrap"},
    "measures": {
        "bootstrap",
        "calibration",
        "predictions",
        "probability",
        "problems",
        "ratings",
        "study_level",
        "thresholds",
    },
    "model_file": {"calibration", "joint", "problems", "thresholds", "vertex", "atomic", "spec"},
    "scoring": {"dataset", "input_pipeline", "metrics", "model_file", "predictions", "problems", "manifest", "spec"},
    "explain": {"problems"},
    "slice_picture": {"triage", "charts", "montage", "spec"},
    "figures": {"charts", "montage"},
    "plots": {"charts", "figures"},
    "evaluation_sections": {
        "calibration",
        "curves",
        "figures",
        "html_page",
        "metrics",
        "plots",
        "predictions",
        "thresholds",
    },
    "evaluation_page": {
        "evaluation_sections",
        "figures",
        "html_page",
        "measures",
        "montage",
        "predictions",
        "probability",
    },
    "comparable": {"predictions", "problems"},
    "comparison": {"bootstrap", "comparable", "curves", "probability", "ratings", "study_level"},
    "comparison_page": {"comparison", "figures", "plots", "csv_text", "html_page", "progress_bar"},
    "serving": {"joint", "model_file", "records", "spec"},
    "saved_model": {"model_file", "serving"},
    "model_card": {"measures", "model_file", "thresholds"},
    "slice_stream": {"dicom", "pixels", "repeats", "sources", "problems", "spec"},
    "triage": {"slice_stream", "montage", "problems", "repeats", "spec"},
    "predict_folder": {"folder_lock", "problems", "atomic", "csv_text"},
    "fitting": {
        "assembly",
        "calibration",
        "dataset",
        "hparams",
        "joint",
        "model_file",
        "predictions",
        "probability",
        "problems",
        "scoring",
        "study_level",
        "thresholds",
    },
    "ending": {
        "assembly",
        "dataset",
        "fitting",
        "hparams",
        "loop",
        "metrics",
        "model_file",
        "predictions",
        "probability",
        "splits",
        "state",
        "steps",
        "strategy",
    },
    "evaluate": {
        "assembly",
        "command",
        "dataset",
        "ending",
        "evaluation_page",
        "fitting",
        "hparams",
        "measures",
        "model_file",
        "probability",
        "problems",
        "progress_line",
        "quiet",
        "run_dir",
        "scoring",
        "vertex",
        "atomic",
    },
    "compare": {
        "command",
        "comparable",
        "comparison",
        "comparison_page",
        "predictions",
        "problems",
        "run_dir",
        "vertex",
        "atomic",
    },
    "predict_pictures": {
        "explain",
        "model_file",
        "predict_folder",
        "problems",
        "slice_picture",
        "slice_stream",
        "triage",
        "atomic",
        "export",
        "montage",
        "sources",
    },
    "predict": {
        "command",
        "display",
        "model_file",
        "predict_folder",
        "predict_pictures",
        "problems",
        "progress_line",
        "quiet",
        "slice_stream",
        "triage",
        "atomic",
        "csv_text",
        "montage",
        "packed",
        "sources",
        "plural",
    },
    "submit": {
        "command",
        "competition",
        "dataset",
        "model_file",
        "problems",
        "progress_line",
        "quiet",
        "scoring",
        "atomic",
    },
    "score": {"command", "competition", "probability", "problems", "label_csv", "labels"},
    "export": {"command", "model_card", "model_file", "problems", "quiet", "saved_model", "vertex", "atomic", "pixels"},
    "assembly": {
        "augment",
        "averages",
        "dataset",
        "hparams",
        "input_pipeline",
        "joint",
        "labels",
        "loop",
        "losses",
        "metrics",
        "model_weights",
        "models",
        "optimizers",
        "problems",
        "sampling",
        "steps",
        "strategy",
    },
    "session": {
        "assembly",
        "dataset",
        "display",
        "ending",
        "hparams",
        "input_page",
        "input_pipeline",
        "loop",
        "problems",
        "run_dir",
        "saver",
        "scalars",
        "state",
        "steps",
        "strategy",
        "vertex",
        "waiting",
    },
    "task": {
        "bucket_path",
        "command",
        "dataset",
        "environment",
        "hparams",
        "loop",
        "problems",
        "quiet",
        "session",
        "vertex",
    },
}


def imported(path: Path, top_only: bool = False) -> set[str]:
    """Dotted names that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def rooms_of(names: set[str], package: str = "ich_tfrecords") -> set[str]:
    parts = {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return parts & {path.stem for path in (ROOT / package).glob("*.py")}


def third_party(names: set[str]) -> set[str]:
    tops = {name.split(".")[0] for name in names}
    return tops - set(sys.stdlib_module_names) - {"ich_tfrecords", "beam_pipelines", "trainer", "__future__"}


FILES = {package: sorted((ROOT / package).glob("*.py")) for package in ("ich_tfrecords", "beam_pipelines", "trainer")}


@pytest.mark.parametrize("path", FILES["ich_tfrecords"], ids=lambda path: path.stem)
def test_a_room_imports_only_what_the_house_allows(path):
    if path.stem == "__init__":
        assert imported(path) == {"__future__", "__future__.annotations"} & imported(path)
        return
    allowed = MAY_IMPORT[path.stem]
    assert rooms_of(imported(path)) - {path.stem} <= allowed
    assert path.stem not in THIRD_PARTY or third_party(imported(path)) <= THIRD_PARTY[path.stem]


@pytest.mark.parametrize("path", FILES["trainer"], ids=lambda path: path.stem)
def test_a_room_of_the_trainer_imports_only_what_the_house_allows(path):
    if path.stem != "__init__":
        names = imported(path)
        assert (rooms_of(names, "trainer") | rooms_of(names)) - {path.stem} <= TRAINER_MAY_IMPORT[path.stem]


TYPES_ONLY = {("card", "manifest"), ("shard_reader", "dataset")}


@pytest.mark.parametrize("table", [MAY_IMPORT, TRAINER_MAY_IMPORT], ids=["ich_tfrecords", "trainer"])
def test_the_arrows_run_one_way(table):
    done: set[str] = set()
    waiting = {
        room: {other for other in allowed if other in table and (room, other) not in TYPES_ONLY}
        for room, allowed in table.items()
    }
    while waiting:
        free = {room for room, allowed in waiting.items() if allowed <= done}
        assert free, f"a circle among {sorted(waiting)}"
        done |= free
        waiting = {room: allowed for room, allowed in waiting.items() if room not in free}


@pytest.mark.parametrize("package", FILES)
def test_packages_keep_apart(package):
    forbidden = {
        "ich_tfrecords": {"beam_pipelines", "trainer", "cv2", "apache_beam"},
        "beam_pipelines": {"trainer", "tensorflow", "keras", "cv2"},
        "trainer": {"beam_pipelines", "apache_beam"},
    }[package]
    for path in FILES[package]:
        assert not {name.split(".")[0] for name in imported(path)} & forbidden, path.name


def test_tensorflow_is_never_imported_at_the_top_of_a_room():
    for path in FILES["ich_tfrecords"]:
        assert "tensorflow" not in third_party(imported(path, top_only=True)), path.name


def test_the_windows_have_their_numbers_in_yaml_alone(rsna_spec):
    """A width of 380 HU, the subset counts and the label order occur in no Python file."""
    for path in [path for paths in FILES.values() for path in paths if "synthetic" not in path.stem]:
        numbers = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, int)
        }
        assert not numbers & {380, 42500, 7500, rsna_spec.shards.target_bytes}, path.name


def test_importing_the_command_loads_neither_tensorflow_nor_cv2():
    code = (
        "import sys, beam_pipelines.convert, ich_tfrecords.conversion, ich_tfrecords.inspect; "
        "print([name for name in ('tensorflow', 'cv2', 'keras') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
