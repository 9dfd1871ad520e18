"""The house of docs/architecture.md: who may import whom, one definition for a value, light workers."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES = 400  # of a file
MOST_FILES = 22  # of a department

# From the ground up. Each department, and each file that stands by itself: the departments of its own package that it
# may import, all of them named above it; then the libraries of others. Inside a department files are free, but for
# circles.
LIBRARY = {
    "environment": ("", ""),
    "problems": ("", ""),
    "plural": ("", ""),
    "command_line": ("", ""),
    "spec": ("", "yaml"),
    "crop": ("", "numpy"),
    "pixels": ("spec crop", "numpy"),
    "labels": ("plural spec", "numpy pyarrow"),
    "storage": ("plural problems labels", "numpy pyarrow isal google google_crc32c requests urllib3"),
    "dicom": ("environment problems pixels", "numpy pydicom jpeg_ls openjpeg numba"),
    "volumes": ("pixels storage dicom", "numpy isal pydicom nibabel"),
    "dataset": ("plural spec labels storage", "numpy pandas pyarrow google google_crc32c tensorflow"),
    "conversion": ("plural problems spec pixels labels storage dicom volumes dataset", "numpy pyarrow google_crc32c"),
    "views": ("spec pixels storage dataset", "numpy pyarrow PIL jinja2 markupsafe"),
    "synthetic": ("environment command_line storage dicom views", "numpy"),
    "kaggle": ("environment command_line storage views", "pyarrow"),
    "inspect": ("plural environment command_line storage dataset views", ""),
}
TRAINER = {
    "shell": ("", "keras tensorflow yaml"),
    "tracking": ("shell", "mlflow"),
    "data": ("shell", "numpy numba llvmlite pyarrow google_crc32c tensorflow"),
    "results": ("shell data", "numpy pyarrow scipy sklearn"),
    "trust": ("shell data results", "numpy pyarrow"),
    "models": ("shell data results trust", "numpy h5py keras tensorflow"),
    "training": (
        "shell tracking data results trust models",
        "numpy pyarrow PIL yaml sklearn keras tensorflow tensorboard",
    ),
    "classical": ("shell data results trust models training", "numpy sklearn keras"),
    "series": ("shell data results trust models training", "numpy keras tensorflow"),
    "serving": (
        "shell data results models training series",
        "numpy yaml keras tensorflow tf2onnx onnx onnxruntime",
    ),
    "prediction": (
        "shell data results trust models series",
        "numpy pyarrow PIL matplotlib isal google_crc32c keras tensorflow pydicom highdicom",
    ),
    "pages": ("results trust models training prediction", "numpy matplotlib PIL"),
    "worklist": ("shell results models prediction pages", "numpy pyarrow keras tensorflow"),
    "web": (
        "shell trust models prediction worklist",
        "numpy pyarrow starlette uvicorn python_multipart anyio h11",
    ),
    "listening": ("shell prediction worklist", "pydicom pynetdicom dicomweb_client requests"),
    "task": ("shell data training series", ""),
    "evaluate": ("shell data results models training series pages", "numpy"),
    "compare": ("shell results training pages", ""),
    "audit": ("shell data results trust models training series pages", "numpy pyarrow"),
    "embed": ("shell data models training", ""),
    "classify": ("shell data models classical", ""),
    "predict": ("shell models prediction worklist", ""),
    "serve": ("shell models worklist web", ""),
    "export": ("shell results trust models serving", "numpy keras tensorflow"),
    "submit": ("shell data results models training series", "numpy"),
    "score": ("shell results", "numpy pyarrow"),
    "listen": ("shell models listening", ""),
    "monitor": ("shell models prediction pages worklist trust", "numpy pyarrow"),
}
PIPELINES = {
    "progress": ("", ""),
    "dataflow": ("progress", "apache_beam google"),
    "transforms": ("", "apache_beam"),
    "launch": ("progress dataflow transforms", "apache_beam google psutil"),
    "inputs": ("", "numpy pyarrow"),
    "reject_limit": ("launch", "numpy pyarrow"),
    "convert": ("progress dataflow transforms launch inputs reject_limit", "apache_beam pyarrow"),
}
HOUSE = {"ich_tfrecords": LIBRARY, "trainer": TRAINER, "beam_pipelines": PIPELINES}
# departments of the library that a sibling may import
OPEN = {
    "trainer": "environment problems plural spec crop pixels labels storage dicom volumes dataset views",
    "beam_pipelines": "environment command_line problems plural spec labels storage dataset conversion views",
}


@functools.cache
def imported(path: Path, top_only: bool = False) -> set[str]:
    """Dotted names that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def department(name: str) -> str:
    """`labels` of `ich_tfrecords.labels.join`."""
    return name.split(".")[1]


def files(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py")) if path != ROOT / package / "__init__.py"]


def inside(path: Path, package: str) -> Iterator[str]:
    """Departments of `package` that a file imports; a name that `package` itself defines is none."""
    for name in imported(path):
        if name.startswith(f"{package}.") and department(name) not in ("__version__", "NOT_A_DEVICE"):
            yield department(name)


def others(path: Path) -> set[str]:
    """Libraries of others that a file imports."""
    tops = {name.split(".")[0] for name in imported(path)}
    return tops - set(sys.stdlib_module_names) - HOUSE.keys() - {"__future__"}


ALL = [path for package in HOUSE for path in files(package)]


@pytest.mark.parametrize("path", ALL, ids=module)
def test_a_file_imports_what_its_department_may(path):
    package, own = module(path).split(".")[:2]
    within, libraries = HOUSE[package][own]  # an unknown department fails here
    assert set(inside(path, package)) <= {own, *within.split()}
    assert others(path) <= set(libraries.split())
    for sibling in HOUSE.keys() - {package}:
        allowed = OPEN[package].split() if sibling == "ich_tfrecords" else []
        assert set(inside(path, sibling)) <= set(allowed), f"{package} imports {sibling}"


@pytest.mark.parametrize("package", HOUSE)
def test_the_arrows_run_one_way(package):
    done: set[str] = set()
    for own, (within, _) in HOUSE[package].items():
        assert set(within.split()) <= done, own
        done.add(own)
    there = {path.stem if path.is_file() else path.name for path in (ROOT / package).iterdir() if path.name[0] != "_"}
    assert there - {"py"} == done


@pytest.mark.parametrize("package", HOUSE)
def test_files_form_no_circle(package):
    names = {module(path) for path in files(package)}
    found = {
        module(path): {name for name in imported(path) for name in (name, name.rpartition(".")[0])}
        for path in files(package)
    }
    list(TopologicalSorter({own: wanted & names - {own} for own, wanted in found.items()}).static_order())


@pytest.mark.parametrize("package", ["ich_tfrecords", "trainer"])
def test_a_department_says_what_it_owns_and_exports_nothing(package):
    folders = [path for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"]
    for folder in folders:
        tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        text = ast.get_docstring(tree) or ""
        assert text.startswith("Owns "), folder.name
        assert "never" in text.partition("\n\n")[2], folder.name
        assert len(tree.body) == 1, folder.name
        assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder.name


@pytest.mark.parametrize("path", ALL, ids=module)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_tests_lie_in_the_folders_of_what_they_test():
    for package in HOUSE:
        for folder in (path for path in (ROOT / "tests" / package).rglob("*") if path.is_dir()):
            if folder.name != "__pycache__":
                assert (ROOT / folder.relative_to(ROOT / "tests")).is_dir(), folder


def test_tensorflow_is_never_imported_at_the_top_of_the_library():
    for path in files("ich_tfrecords"):
        assert "tensorflow" not in {name.split(".")[0] for name in imported(path, top_only=True)}, path.name


@pytest.mark.slow
def test_the_windows_have_their_numbers_in_yaml_alone(rsna_spec):
    """A width of 380 HU, the subset counts and the label order occur in no Python file."""
    for path in [path for path in ALL if "synthetic" not in path.parts]:
        numbers = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, int)
        }
        assert not numbers & {380, 42500, 7500, rsna_spec.shards.target_bytes}, path.name


@pytest.mark.slow
def test_importing_the_command_loads_neither_tensorflow_nor_cv2():
    code = (
        "import sys, beam_pipelines.convert, ich_tfrecords.conversion.steps, ich_tfrecords.inspect; "
        "print([name for name in ('tensorflow', 'cv2', 'keras') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
