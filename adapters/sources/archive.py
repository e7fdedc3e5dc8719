"""An adapter out of an archive: tar, tar.gz or zip, told apart by how it begins.

A stranger packed it. Nothing in it decides where anything is written: the members that belong to an adapter are written
under their own well-known names into a folder that is given, all others are passed over. What no honest archive of an
adapter holds (links, devices, `..`, two folders, two files of one name, a bomb) is refused as soon as it is read.
"""

import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from adapters.files import ADAPTER_FILES, BESIDE, MAX_BYTES, missing, too_large
from adapters.findings import RefusedError, quote
from adapters.sources import tar, zip
from adapters.sources.fetching import Progress
from adapters.sources.members import Member, refused

MAX_MEMBERS = 64
MAX_RATIO = 100  # bytes unpacked for each byte of the archive
_SLACK = 1 << 20  # bytes that any archive may unpack to: tar pads small files with zeros

_KEPT = frozenset((*ADAPTER_FILES, *BESIDE))
_MAX_NAME = 255

_HEAD = 512
_OTHER_FORMATS = {
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"\x1f\x9d": "compress",
}


def unpack(archive: Path, target: Path, limit: int, progress: Progress) -> None:
    """Writes the files of the adapter in `archive` into the folder `target`; they take at most `limit` bytes.

    Raises RefusedError for an archive that is refused; the caller removes the folder. OSError: the disk.
    """
    with _opened(archive) as file:
        size = os.fstat(file.fileno()).st_size
        budget = _Budget(min(limit, size * MAX_RATIO + _SLACK))
        names: list[str] = []
        for member, name in _named(_members(file, size, budget.left)):
            names.append(name)
            if name in _KEPT:
                if member.size > MAX_BYTES[name]:
                    raise too_large(name, MAX_BYTES[name])
                budget.require(member.size)
                _write(target, name, member, budget.spend)
            progress(min(file.tell(), size), size)
    for name in ADAPTER_FILES:
        if name not in names:
            raise RefusedError(missing(name, names))


class _Budget:
    """How many bytes may still be unpacked, whatever the archive announces."""

    def __init__(self, left: int) -> None:
        self.left = left

    def require(self, count: int) -> None:
        """Raises RefusedError when so many are not left."""
        if count > self.left:
            raise refused(f"the archive unpacks to more than {MAX_RATIO} times its size, or than is allowed")

    def spend(self, count: int) -> None:
        """Takes so many away; raises RefusedError when they are not left."""
        self.require(count)
        self.left -= count


def _opened(archive: Path) -> BufferedReader:
    try:
        descriptor = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refused(f"the archive cannot be opened ({os.strerror(error.errno or 0)})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused("the archive is not a regular file")
    return os.fdopen(descriptor, "rb")


def _members(file: BufferedReader, size: int, limit: int) -> Iterator[Member]:
    head = file.read(_HEAD)
    file.seek(0)
    if tar.is_tar(head):
        return tar.members(tar.Plain(file))
    if head.startswith(b"\x1f\x8b"):
        return tar.members(tar.Gunzipped(file, limit))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return zip.members(file, size, MAX_MEMBERS)
    other = next((name for magic, name in _OTHER_FORMATS.items() if head.startswith(magic)), None)
    raise refused(f"the archive is packed with {other}" if other else "this is neither a tar nor a zip archive")


def _named(members: Iterator[Member]) -> Iterator[tuple[Member, str]]:
    """Each file with its name within the one folder that all are in."""
    folders: set[str] = set()
    seen: set[str] = set()
    for count, member in enumerate(members, 1):
        if count > MAX_MEMBERS:
            raise refused(f"the archive has more than {MAX_MEMBERS} members")
        path = _path(member.name)
        if not path or path[0] == "__MACOSX":  # "./", and what macOS packs beside the files
            continue
        folder, name = (path[0], "") if member.folder else ("/".join(path[:-1]), path[-1])
        if len(path) > (1 if member.folder else 2):
            raise refused(f"{quote(member.name)} lies more than one folder deep")
        folders.add(folder)
        if len(folders) > 1:
            raise refused(f"the archive holds more than one folder ({quote(member.name)} is in a second one)")
        if (key := name.casefold()) in seen:
            raise refused(f"the archive holds {quote(member.name)} twice")
        if not member.folder:
            seen.add(key)
            yield member, name


def _path(name: str) -> tuple[str, ...]:
    """The parts of a member's name. Raises RefusedError for a name that is no plain relative path."""
    if len(name) > _MAX_NAME or not name.isprintable() or "\\" in name:
        raise refused(f"the name {quote(name)} is no file's name")
    parts = name.removesuffix("/").split("/")
    while parts and parts[0] == ".":
        parts = parts[1:]
    if any(part in ("", ".", "..") for part in parts):
        raise refused(f"the name {quote(name)} leads out of the archive")
    return tuple(parts)


def _write(target: Path, name: str, member: Member, spend: Callable[[int], None]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(target / name, flags, 0o600), "wb") as file:
        for chunk in member.content.chunks():
            spend(len(chunk))
            file.write(chunk)
        os.fchmod(file.fileno(), 0o444)
