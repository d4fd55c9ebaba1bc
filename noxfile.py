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


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """Runs all tests, slow ones too, on the lower bounds."""
    _test(session, "lowest-direct", "not tpu")


@nox.session
def newest(session: nox.Session) -> None:
    """Runs all tests, slow ones too, on the newest of everything."""
    _test(session, "highest", "not tpu")


@nox.session(reuse_venv=True)
def quick(session: nox.Session) -> None:
    """Runs the tests that need neither long fits nor other processes."""
    _test(session, "highest", "quick")


def _test(session, resolution, markers):
    session.install("--resolution", resolution, "-e", ".[test]")
    pytest = ["python", "-m", "pytest", "-n", "2", "-m", markers]
    session.run(*pytest, *session.posargs)
    session.run("python", "-m", "pytest", "--doctest-modules", "keras_istar")
