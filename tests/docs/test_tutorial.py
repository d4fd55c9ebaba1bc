"""The notebook of the documentation runs, and shows what it has printed."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.ipynb"
IMPORTS = "import keras_istar"  # The cell of them has remarks of TensorFlow.


@pytest.fixture
def tutorial():
    return nbformat.read(TUTORIAL, as_version=4)


def printed(notebook):
    """Text and kinds of the outputs of every cell of code."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = output.get("text", "") + data.get("text/plain", "")
            yield cell, output, text, set(data)


def test_outputs_are_those_of_one_run_without_a_warning(tutorial):
    code = [cell for cell in tutorial.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    found = list(printed(tutorial))
    kinds = [output.output_type for _, output, *_ in found]
    assert "error" not in kinds
    assert not [text for _, x, text, _ in found if x.get("name") == "stderr"]
    assert sum("image/png" in kinds for *_, kinds in found) >= 2
    assert TUTORIAL.stat().st_size < 600_000


@pytest.mark.processes
def test_tutorial_runs_with_a_small_model(
    tutorial, preset, table_file, monkeypatch
):
    monkeypatch.setenv("PRESET", preset)
    monkeypatch.setenv("TASK", table_file)
    monkeypatch.setenv("LIMIT", "64")
    resources = {"metadata": {"path": str(TUTORIAL.parent)}}
    nbclient.NotebookClient(
        tutorial, timeout=None, kernel_name="python3", resources=resources
    ).execute()
    found = list(printed(tutorial))
    said = "".join(text for *_, text, _ in found)
    assert "Isotropy of" in said and "istar_target" in said
    assert "answers as the trained one: True" in said
    loud = [
        text
        for cell, output, text, _ in found
        if output.get("name") == "stderr" and IMPORTS not in cell.source
    ]
    assert not loud, loud
