"""Methods of the runs side by side, as texts."""

import argparse

import pytest
from side_by_side.methods import Method
from side_by_side.methods import parse_method
from study import grid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none,seeds=5", Method(seeds=5)),
        ("istar:-0.1", Method(-0.1)),
        ("istar:target=0.3", Method(20.0, 0.3, 0.3)),
        (
            "istar:target=0.1..0.3,strength=2,per_layer,error=batch",
            Method(2.0, 0.1, 0.3, of="layers", error="batch"),
        ),
        (
            "istar:target=0.5..1x,centered",
            Method(20.0, 0.5, 1.0, True, of="centered"),
        ),
        (
            "istar:target=0.75x,strength=1,at=inference,ramp=0.5,momentum=0.99",
            Method(
                1.0, 0.75, 0.75, True, at="inference", ramp=0.5, momentum=0.99
            ),
        ),
    ],
)
def test_methods_are_read(text, expected):
    method = parse_method(text)
    assert method == expected
    # Its name in the results is the text, without the number of runs.
    assert str(method) == text.removesuffix(",seeds=5")


@pytest.mark.parametrize(
    "text",
    [
        *("none", "istar:-0.1", "istar:0.5,per_layer", "istar:target=0.3"),
        "istar:target=0.75x,strength=1,per_layer,momentum=0.5",
        "istar:target=0.1..0.3x",
    ],
)
def test_methods_are_written_as_in_the_grid(text):
    assert str(parse_method(text)) == text
    assert grid.spell(grid.parse_method(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "istar",
        "istar:x",
        "some",
        "istar:target=0.1..0.2..0.3",
        "none,per_layer",
        "none,color=red",
        "none,seeds=0",
        "istar:target=0.3,error=mean",
        "istar:target=0.3,strength=-1",
        "istar:target=0.3,per_layer,centered",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="Received"):
        parse_method(text)
