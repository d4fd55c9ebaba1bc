"""The table of supported models says what is so."""

import pathlib

import keras
import pytest

pytest.importorskip("keras_hub")

import hub_models
import supported_models

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "supported_models.md"
# One for each way in which blocks and masks are found.
QUICK = ["BertBackbone", "ViTBackbone", "CLIPBackbone", "SwinTransformerBackbone"]

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="KerasHub is tested elsewhere"
)


def _lines(name):
    """Lines of the table about a backbone and its tasks."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return [
        line
        for line in lines
        if line.startswith(f"| {name} |") or f"`{name}`" in line
    ]


def test_every_backbone_has_a_line():
    text = TABLE.read_text(encoding="utf-8")
    for name in supported_models.backbones():
        assert f"| {name} |" in text
    assert set(hub_models.MODELS) <= set(supported_models.backbones())
    assert "| fails" not in text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in QUICK else [pytest.mark.slow]
        )
        for name, entry in hub_models.MODELS.items()
        if isinstance(entry, hub_models.Model)
    ],
)
def test_the_table_is_right(name):
    if name in QUICK:
        rows = [supported_models.examine_backbone(name)]
    else:
        rows = list(supported_models.rows_of(name))
    lines = _lines(name)
    for row in rows:
        assert f"| {' | '.join(row)} |" in lines
