import numpy as np
import pytest

from keras_istar._src import validation


@pytest.mark.parametrize("value", [1, 2.5, -3, np.float32(0.5), np.int64(4)])
def test_real_numbers_become_floats(value):
    checked = validation.check_real("x", value)
    assert type(checked) is float
    assert checked == value


@pytest.mark.parametrize(
    "value, rule",
    [
        ("1", "a real number"),
        (None, "a real number"),
        (True, "a real number"),
        (1j, "a real number"),
        (np.nan, "a finite number"),
        (-np.inf, "a finite number"),
    ],
)
def test_other_values_are_not_real(value, rule):
    with pytest.raises(ValueError) as error:
        validation.check_real("x", value)
    assert str(error.value) == f"`x` must be {rule}. Received: x={value!r}"


def test_fractions_include_the_ends():
    assert [validation.check_fraction("x", v) for v in (0, 1, 0.5)] == [
        0,
        1,
        0.5,
    ]
    for value in (-1e-9, 1.0001):
        with pytest.raises(ValueError, match="`x` must be between 0 and 1"):
            validation.check_fraction("x", value)


def test_momentum_excludes_the_ends():
    assert validation.check_momentum(None) is None
    assert validation.check_momentum(0.5) == 0.5
    for value in (0, 1, -0.5, 2):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            validation.check_momentum(value)


def test_positive_integers():
    assert validation.check_positive_int("n", np.int32(3)) == 3
    for value in (0, -1, 1.0, True, "1", None):
        with pytest.raises(ValueError) as error:
            validation.check_positive_int("n", value)
        assert str(error.value) == (
            f"`n` must be a positive integer. Received: n={value!r}"
        )
