"""The table of supported models says what is so."""

import pathlib

import keras
import pytest

pytest.importorskip("keras_hub")

import hub_models
import supported_models

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "supported_models.md"
# One for each way in which blocks and masks are found.
QUICK = ["BertBackbone", "CLIPBackbone", "Gemma3nBackbone", "ResNetBackbone"]

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the table is that of TensorFlow",
)


@pytest.fixture(scope="module")
def lines():
    """The lines of the table, by the backbone that they are about."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {line.split(" | ")[0][2:]: line for line in lines if "|" in line}


def test_every_backbone_has_a_line(lines):
    names = supported_models.backbones()
    assert sorted(hub_models.MODELS) == names
    assert [name for name in lines if name.endswith("Backbone")] == [
        "Backbone",
        *names,
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in hub_models.MODELS
    ],
)
def test_the_table_is_right(name, lines):
    assert lines[name] == supported_models.line_of(
        supported_models.row_of(name)
    )
