"""Sessions that test the package; `nox` runs the tests at both ends.

    pip install "nox[uv]" && nox
    nox -s quick                                 # A minute or two.
    nox -s newest -- --cov --cov-fail-under=100  # Fails unless all lines run.

Both ends are those of the bounds in pyproject.toml. uv takes each bound at its
word: what it installs for `oldest` is the lower bound itself.
"""

import nox

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["oldest", "newest"]


PYTEST = ["python", "-m", "pytest", "-n", "2", "--dist", "loadfile"]
QUICK = [
    *("-m", "not (tpu or slow or processes)", "--hypothesis-profile=quick"),
    *("tests/validation", "tests/score/test_moments.py"),
    *("tests/score/test_isoscore.py", "tests/layers/test_istar.py"),
    *("tests/layers/test_target.py", "tests/layers/test_state.py"),
    *("tests/measure/test_report.py", "tests/measure/test_isoscore_metric.py"),
]


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """Runs all tests, slow ones too, on the lower bounds."""
    _test_all(session, "lowest-direct")


@nox.session
def newest(session: nox.Session) -> None:
    """Runs all tests, slow ones too, on the newest of everything."""
    _test_all(session, "highest")


@nox.session(reuse_venv=True)
def quick(session: nox.Session) -> None:
    """Runs the short tests of functions, layers and `measure`."""
    session.install("-e", ".[test]")
    session.run(*PYTEST, *QUICK, *session.posargs)


def _test_all(session, resolution):
    session.install("--resolution", resolution, "-e", ".[test]")
    # Here XLA compiles as it does for users, unlike in conftest.py.
    session.env["XLA_FLAGS"] = ""
    session.run(*PYTEST, "-m", "not tpu", *session.posargs)
    session.run("python", "-m", "pytest", "--doctest-modules", "keras_istar")
