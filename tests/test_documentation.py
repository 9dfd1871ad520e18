"""README and docs: short enough to be read, every link leads somewhere, every file and test named exists."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec

import pytest
from documented import OURS, ROOT, anchors, links, pages, paths, spans

BY_PAGE = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))


def _text(page) -> str:
    return page.read_text(encoding="utf-8")


def test_the_readme_is_short():
    lines = _text(ROOT / "README.md").splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 120


def test_the_index_names_every_page():
    listed = set(links(_text(ROOT / "docs" / "README.md")))
    others = [page.relative_to(ROOT / "docs") for page in pages()[1:] if page.name != "README.md"]
    assert {str(page) for page in others} == listed - {"../README.md", "walkthrough.ipynb"}


@BY_PAGE
def test_links_lead_somewhere(page):
    dead = []
    for link in links(_text(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(_text(target))):
            dead.append(link)
    assert dead == []


def test_pages_lead_to_the_index_and_the_readme_to_them():
    shown = {link.partition("#")[0] for link in links(_text(ROOT / "README.md"))}
    assert shown >= {f"docs/{name}.md" for name in ("README", "convert", "train", "results", "buckets", "benchmarks")}
    for name in ("convert", "train", "results", "buckets", "dataflow", "faults", "security", "benchmarks"):
        assert "README.md" in links(_text(ROOT / "docs" / f"{name}.md")), name


@BY_PAGE
def test_files_that_a_page_names_exist(page):
    """A page in docs may name its pictures as seen from there; `<model>` and `*` stand for some of them."""
    made = {"benchmarks/results"}
    named = {path: re.sub(r"<\w+>", "*", path) for path in paths(_text(page)) if path.rstrip("/") not in made}
    lacking = [path for path, glob in named.items() if not any([*ROOT.glob(glob), *page.parent.glob(glob)])]
    assert lacking == []


@pytest.mark.slow
@BY_PAGE
def test_tests_that_a_page_names_exist(page):
    """`tests/test_x.py::test_y`, `test_x::test_y`, and `::test_z` for another one of the same file."""
    file, lacking = "", []
    for named, test in re.findall(r"`(?:[\w/]*?(test_\w+)(?:\.py)?)?(?:::(test_\w+))?`", _text(page)):
        file = named or file
        if (named or test) and not any(f"def {test}(" in _text(path) or not test for path in _tests(file)):
            lacking.append(f"{file}::{test}")
    assert lacking == []


def _tests(name: str) -> list:
    return list((ROOT / "tests").rglob(f"{name}.py"))


@BY_PAGE
def test_names_of_the_code_exist(page):
    """Such as `trainer.task`, and modules, classes and functions in it."""
    named = {span for span in spans(_text(page)) if re.fullmatch(rf"({'|'.join(OURS)})(\.\w+)+(\(.*)?", span)}
    assert [span for span in named if not _resolves(span.partition("(")[0])] == []


def _resolves(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    return hasattr(import_module(module), attribute) or (
        hasattr(import_module(module), "__path__") and bool(find_spec(name))
    )


def test_the_two_pages_of_promises_name_their_tests():
    for name in ("faults", "security"):
        assert len(re.findall(r"`[\w/]*test_\w+(?:\.py)?::", _text(ROOT / "docs" / f"{name}.md"))) >= 20


def test_texts_of_the_code_lead_to_pages_and_headings_that_exist():
    sources = [
        path
        for folder in (*OURS, "benchmarks", "configs")
        for path in (ROOT / folder).rglob("*.[py][ya]*")
        if path.suffix != ".pyc"
    ]
    texts = [" ".join(_text(path).replace('"\n', "").split()) for path in sources]
    named = {path for text in texts for path in paths(text) if path.startswith("docs/")}
    assert {"docs/train.md", "docs/faults.md"} <= named
    assert [path for path in named if not any((ROOT / "docs").glob(f"{path.removeprefix('docs/')}*"))] == []
    headings = {found for text in texts for found in re.findall(r"see (docs/\w+\.md), (\w+(?: \w+)*)", text)}
    assert ("docs/train.md", "several machines") in headings
    assert [place for place, name in headings if name.replace(" ", "-") not in anchors(_text(ROOT / place))] == []


# --- the reading itself ---


def test_names_of_the_code_are_looked_up():
    assert all(map(_resolves, ("trainer.task", "trainer.task.main", "ich_tfrecords.spec.DatasetSpec")))
    assert not any(map(_resolves, ("trainer.tusk", "trainer.task.mean")))


def test_links_and_anchors_are_found():
    page = "# One `two` (three)\n\n[a](b.md#c) ![d](e.png) [f](https://g) `[h](i)` [j\nk](l.md)\n\n```\n# no\n```\n"
    assert links(page) == ["b.md#c", "e.png", "l.md"]
    assert anchors(page) == {"one-two-three"}
    assert anchors("## Projection: 762,131 slices") == {"projection-762131-slices"}


def test_paths_are_found():
    text = "See `configs/*.yaml`, (docs/none.md) and tests/test_x.py::test_y, not /srv/docs/x or rsna/docs/y."
    assert paths(text) == {"configs/*.yaml", "docs/none.md", "tests/test_x.py"}
