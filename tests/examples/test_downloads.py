import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from finetuning import downloads
from finetuning.command_line import UserError
from finetuning.downloads import Member
from finetuning.downloads import Package

EXAMPLES = Path(downloads.__file__).parents[1]
TEXT, DATA = b"a b\nc d\n", bytes(range(256)) * 50
NEVER_PIP = (sys.executable, "-c", "raise SystemExit('pip was called')")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder, files):
    """A wheel of `toy` 1.0 that pip accepts."""
    path = folder / "toy-1.0-py3-none-any.whl"
    info = "toy-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def tar_gz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def package(archive, **files):
    """A `Package` of the archive with members given as name=(path, content)."""
    members = (Member((p,), sha256(c)) for p, c in files.values())
    return Package("toy==1.0", sha256(archive.read_bytes()), tuple(members))


def copying_pip(archive, seconds=0.0):
    """A command that puts `archive` where pip would put what it downloads."""
    code = (
        "import shutil, sys, time; "
        f"time.sleep({seconds}); shutil.copy({str(archive)!r}, sys.argv[-1])"
    )
    return (sys.executable, "-c", code)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; pip sees what lies in `tmp_path` and no network."""
    monkeypatch.setenv("KERAS_ISTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path):
    files = {"toy/a.txt": TEXT, "toy/deep/b.bin": DATA, "../../evil.txt": b"!"}
    return write_wheel(tmp_path, files)


@pytest.fixture
def toy(wheel):
    return package(wheel, a=("toy/a.txt", TEXT), b=("toy/deep/b.bin", DATA))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_fetch_unpacks_only_the_named_files(toy, cache, tmp_path):
    folder = downloads.fetch(toy)
    assert folder == cache / "toy-1.0"
    assert contents(folder) == {"a.txt": TEXT, "b.bin": DATA}
    assert not list(tmp_path.rglob("evil.txt"))


def test_fetch_trusts_the_cache_only_as_far_as_its_hashes(toy):
    folder = downloads.fetch(toy)
    downloads.fetch(toy, pip=NEVER_PIP)
    (folder / "b.bin").write_bytes(DATA[:-1])
    with pytest.raises(UserError, match="pip was called"):
        downloads.fetch(toy, pip=NEVER_PIP)
    downloads.fetch(toy)
    assert contents(folder) == {"a.txt": TEXT, "b.bin": DATA}


def test_fetch_reads_archives_in_source_archives_offline(tmp_path):
    inner = tar_gz({"inner/a.txt": TEXT})
    sdist = tmp_path / "toy-1.0.tar.gz"
    setup = b"from setuptools import setup\nsetup(name='toy', version='1.0')\n"
    info = b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
    files = {"setup.py": setup, "PKG-INFO": info, "x/in.tar.gz": inner}
    sdist.write_bytes(
        tar_gz({f"toy-1.0/{name}": text for name, text in files.items()})
    )
    member = Member(("toy-1.0/x/in.tar.gz", "inner/a.txt"), sha256(TEXT))
    toy = Package("toy==1.0", sha256(sdist.read_bytes()), (member,))
    assert contents(downloads.fetch(toy)) == {"a.txt": TEXT}


def test_fetch_refuses_another_hash(toy, wheel, cache):
    wrong = toy._replace(sha256=sha256(b"another"))
    for pip in ({}, {"pip": copying_pip(wheel)}):
        with pytest.raises(UserError, match="hash of toy==1.0 does not match"):
            downloads.fetch(wrong, **pip)
    wrong = package(wheel, a=("toy/a.txt", TEXT), b=("toy/deep/b.bin", b"no"))
    with pytest.raises(UserError, match="hash of toy/deep/b.bin in toy-1.0"):
        downloads.fetch(wrong)
    assert contents(cache / "toy-1.0") == {}


def test_fetch_says_why_pip_failed():
    toy = Package("toy==1.0", sha256(TEXT), (Member(("a",), sha256(TEXT)),))
    with pytest.raises(UserError) as caught:
        downloads.fetch(toy)
    assert "\n" not in str(caught.value)
    assert str(caught.value) == (
        "pip could not download toy==1.0; is there a network connection? "
        "pip says: No matching distribution found for toy==1.0"
    )


KINDS = ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "DIRTYPE"]


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_fetch_refuses_what_is_no_plain_file(kind, tmp_path, cache):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(TEXT)
    archive = tmp_path / "toy-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        if kind is not None:
            odd = tarfile.TarInfo("toy/odd.txt")
            odd.type, odd.linkname = getattr(tarfile, kind), str(secret)
            tar.addfile(odd)
    toy = package(archive, a=("toy/odd.txt", TEXT))
    reason = "odd.txt" if kind is None else "odd.txt .* is not a plain file"
    with pytest.raises(UserError, match=reason):
        downloads.fetch(toy, pip=copying_pip(archive))
    assert contents(cache / "toy-1.0") == {}


@pytest.mark.parametrize("is_tar", [True, False])
@pytest.mark.parametrize(
    "path", ["/{}/evil.txt", "../../evil.txt", "toy/../../../evil.txt"]
)
def test_files_of_any_path_stay_in_the_folder(is_tar, path, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    path = path.format(str(outside).lstrip("/"))
    archive = tmp_path / "toy-1.0.tar.gz"
    if is_tar:
        archive.write_bytes(tar_gz({path: TEXT}))
    else:
        archive = write_wheel(tmp_path, {path: TEXT})
    toy = package(archive, a=(path, TEXT))
    folder = downloads.fetch(toy, pip=copying_pip(archive))
    assert contents(folder) == {"evil.txt": TEXT}
    assert list(tmp_path.rglob("evil.txt")) == [folder / "evil.txt"]


@pytest.mark.parametrize("path", ["..", "toy/..", "", "/"])
def test_member_name_stays_in_the_folder(path):
    with pytest.raises(ValueError, match="`path` must end with the name"):
        _ = Member((path,), sha256(TEXT)).name
    assert Member(("../../a.txt",), sha256(TEXT)).name == "a.txt"


def test_fetch_recovers_from_an_interruption(toy, monkeypatch):
    replace, calls = os.replace, []

    def interrupted_replace(source, target):
        if calls:
            raise KeyboardInterrupt
        calls.append(replace(source, target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted_replace)
        with pytest.raises(KeyboardInterrupt):
            downloads.fetch(toy)
    folder = downloads.cache_folder() / "toy-1.0"
    assert contents(folder) == {"a.txt": TEXT}
    downloads.fetch(toy)
    assert contents(folder) == {"a.txt": TEXT, "b.bin": DATA}


def test_fetch_removes_only_old_leftovers(toy, cache):
    old, young = cache / "toy-1.0/.part-old", cache / "toy-1.0/.part-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    downloads.fetch(toy)
    assert young.exists() and not old.exists()


def test_processes_that_fetch_at_once_all_succeed(toy, wheel, cache):
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); "
        "from finetuning import downloads; "
        "from finetuning.downloads import Member, Package; "
        f"downloads.fetch({toy!r}, pip={copying_pip(wheel, 0.5)!r})"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert contents(cache / "toy-1.0") == {"a.txt": TEXT, "b.bin": DATA}


def test_fetch_reports_a_cache_that_cannot_be_written(toy, tmp_path, cache):
    cache.write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot fill the cache .* set KERAS"):
        downloads.fetch(toy)


def test_cache_folder_follows_the_user_s_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for variable, expected in (
        (None, tmp_path / "cache"),
        ("KERAS_ISTAR_CACHE", tmp_path / "xdg" / "keras_istar"),
        ("XDG_CACHE_HOME", tmp_path / "home" / ".cache" / "keras_istar"),
    ):
        if variable is not None:
            monkeypatch.delenv(variable)
        assert downloads.cache_folder() == expected
