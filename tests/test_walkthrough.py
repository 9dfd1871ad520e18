"""`docs/walkthrough.ipynb`: it runs from its first cell to its last, and stands there with what it showed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from ich_tfrecords import NOT_A_DEVICE

PAGE = Path(__file__).parents[1] / "docs" / "walkthrough.ipynb"
MOST_BYTES = 1_500_000
ELSEWHERE = re.compile(r"/(?:home|root|tmp|work|usr|opt|Users|var|mnt|srv)/|[A-Z]:\\")  # paths of the machine it ran on


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    found = nbformat.read(PAGE, as_version=4)
    nbformat.validate(found)
    return found


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_stands_there_with_its_outputs_and_nothing_of_the_machine_that_made_them(notebook):
    cells = code_of(notebook)
    assert 18 <= len(notebook.cells) <= 26
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "execute_result"}  # no error
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    texts = [output.get("text", "") or output.data.get("text/plain", "") for output in outputs]
    assert [text for text in (*texts, *(cell.source for cell in notebook.cells)) if ELSEWHERE.search(text)] == []
    assert any(NOT_A_DEVICE in text for text in texts)
    assert len(PAGE.read_bytes()) < MOST_BYTES


def test_it_calls_what_the_commands_call(notebook):
    source = "\n".join(cell.source for cell in code_of(notebook))
    assert set(re.findall(r"^assert (\w+)\.main\(", source, flags=re.MULTILINE)) == {
        "synthetic", "convert", "inspect", "task", "evaluate", "predict",
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
def test_it_runs(notebook, tmp_path):
    """A cell that fails fails here; numbers and pictures may differ from those that stand there."""
    from nbclient import NotebookClient

    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    assert (tmp_path / "walkthrough" / "predicted" / "triage.html").is_file()
    pictures = [output for output in code_of(notebook)[-1].outputs if "image/png" in output.data]
    assert len(pictures) == 1
