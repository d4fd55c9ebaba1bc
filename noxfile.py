"""All tests, slow ones too, at both ends of what pyproject.toml allows.

    pip install "nox[uv]" && nox
    nox -s newest -- --cov --cov-fail-under=100  # fails unless all lines run

uv takes each bound there at its word: what it installs for `oldest` is the
lower bound itself.
"""

import nox

nox.options.default_venv_backend = "uv"


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """The lower bounds, that of Python among them."""
    _test(session, "lowest-direct")


@nox.session
def newest(session: nox.Session) -> None:
    """Whatever is newest."""
    _test(session, "highest")


def _test(session, resolution):
    session.install("--resolution", resolution, "-e", ".[test]")
    pytest = ["python", "-m", "pytest", "-n", "2", "-m", "not tpu"]
    session.run(*pytest, *session.posargs)
