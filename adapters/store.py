"""A content-addressed, immutable store of adapters.

    ROOT/lock                      held shared while something is in staging, exclusively while leftovers are cleared
    ROOT/versions.lock             held for a moment: shared to add or confirm a version, exclusively to take one away
    ROOT/staging/<random>/         a copy being made, or a version being deleted
    ROOT/sha256/<digest>/          a version: adapter_config.json and adapter_model.safetensors, read-only

A version appears by one rename, after its files are on the disk, never changes afterwards, and goes by one rename:
whoever sees a folder under sha256/ sees a whole version, also after kill -9 or a power cut. Its folder's time of change
is when it was last added. The digest is what coreutils compute, too:

    cd ROOT/sha256/<digest> && sha256sum adapter_config.json adapter_model.safetensors | sha256sum
"""

import errno
import fcntl
import hashlib
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

from adapters.files import ADAPTER_FILES, BESIDE, MAX_BYTES, open_file, open_folder, too_large
from adapters.findings import RefusedError

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CHUNK = 1 << 20  # bytes


class StoreError(Exception):
    """A version is not what its digest says, or not there; the text names it."""


class MissingError(StoreError):
    """It is not there."""


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """A version in the store. `digest` (64 hex digits) names its content; `path` is absolute and never changes."""

    digest: str
    path: Path

    @property
    def version(self) -> str:
        """The short name of the content: the first 12 hex digits of the digest."""
        return self.digest[:12]


@dataclass(frozen=True, slots=True)
class AdapterStore:
    """Any number of these, in any number of processes on one machine, may share a root. All calls block on the disk."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> "AdapterStore":
        """Makes the store where there is none, and clears what killed processes left in staging. Raises OSError."""
        store = cls(root.resolve())
        for folder in (store._staging, store._versions):
            folder.mkdir(parents=True, exist_ok=True)
        _sync(store.root)
        store._clear_leftovers()
        return store

    def add(self, folder: Path, accept: Callable[[Path], None] | None = None) -> StoredAdapter:
        """Copies the adapter in `folder` into the store and returns the version; see `take`."""
        return self.take(partial(_copy, folder), accept)

    def take(self, fill: Callable[[Path], None], accept: Callable[[Path], None] | None = None) -> StoredAdapter:
        """Keeps the adapter that `fill` writes into the new folder it is given; the same content is the same version.

        `accept` is called with that folder before it gets its name, and refuses it by raising: so what was judged is
        what is kept, wherever it came from. What either raises is raised here, and the folder is gone. Files that do
        not belong to an adapter are there to be judged, too, and go with the judgement.
        Raises RefusedError when the files cannot be read as an adapter's, StoreError when the store holds this version
        but no longer as it was added, OSError (disk full).
        """
        with self._lock("lock", fcntl.LOCK_SH):
            copy = Path(tempfile.mkdtemp(dir=self._staging))
            try:
                fill(copy)
                digest = digest_of(copy)
                if accept is not None:
                    accept(copy)
                return self._confirm(digest) or self._publish(copy, digest)
            finally:
                shutil.rmtree(copy, ignore_errors=True)  # nothing is left of it once it is published

    def remove(self, digest: str) -> bool:
        """Takes a version away; False when it is not there.

        Whoever has its files open goes on reading them; who opens them by path must have stopped before.
        """
        return self._take_away(digest, -math.inf)

    def collect(self, keep: Collection[str], older_than: float) -> tuple[str, ...]:
        """Removes the versions that are not among `keep` and were added more than `older_than` seconds ago; which.

        Between the call of `add` and the moment its caller says that the version is to be kept, its age protects it.
        """
        unwanted = [version.digest for version in self.versions() if version.digest not in keep]
        return tuple(digest for digest in unwanted if self._take_away(digest, older_than))

    def versions(self) -> tuple[StoredAdapter, ...]:
        """All versions, sorted by digest."""
        names = sorted(filter(_DIGEST.fullmatch, os.listdir(self._versions)))
        return tuple(StoredAdapter(name, self._versions / name) for name in names)

    def get(self, digest: str) -> StoredAdapter | None:
        """The version with this digest, if it was added."""
        path = self._versions / digest
        return StoredAdapter(digest, path) if _DIGEST.fullmatch(digest) and path.is_dir() else None

    def verify(self, digest: str) -> StoredAdapter:
        """Reads a version again and compares it with its digest. Raises MissingError when it is not there, StoreError
        when it differs."""
        while (stored := self.get(digest)) is not None and (mark := _mark(stored.path)) is not None:
            damage = _damage(stored)
            if damage is None:
                return stored
            if _mark(stored.path) == mark:  # else it was taken away while it was read, and may be there again
                raise StoreError(f"{stored.path} is damaged: {damage}")
        raise MissingError(f"{self.root} holds no version {digest[:64]}")

    @property
    def _staging(self) -> Path:
        return self.root / "staging"

    @property
    def _versions(self) -> Path:
        return self.root / "sha256"

    def _confirm(self, digest: str) -> StoredAdapter | None:
        """The version if it is there, which counts as adding it. Raises StoreError when it is damaged."""
        with suppress(MissingError, FileNotFoundError):
            stored = self.verify(digest)
            with self._lock("versions.lock", fcntl.LOCK_SH):
                os.utime(stored.path)
            return stored
        return None

    def _publish(self, copy: Path, digest: str) -> StoredAdapter:
        for name in set(os.listdir(copy)).difference(ADAPTER_FILES):
            (copy / name).unlink()
        for name in ADAPTER_FILES:
            _sync(copy / name)
        copy.chmod(0o755)  # the engine may run as somebody else
        _sync(copy)
        path = self._versions / digest
        with self._lock("versions.lock", fcntl.LOCK_SH):
            try:
                copy.rename(path)
            except OSError as error:
                # Another process published the same content in the meantime.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        _sync(self._versions)
        return StoredAdapter(digest, path)

    def _take_away(self, digest: str, older_than: float) -> bool:
        """Nobody adds or confirms a version while its age is looked at and it goes, so a confirmed one never goes."""
        stored = self.get(digest)
        if stored is None:
            return False
        with self._lock("lock", fcntl.LOCK_SH):
            grave = Path(tempfile.mkdtemp(dir=self._staging))
            try:
                with self._lock("versions.lock", fcntl.LOCK_EX):
                    if time.time() - stored.path.stat().st_mtime < older_than:
                        return False
                    stored.path.rename(grave)
                _sync(self._versions)  # first it has no name, then no files, also for a disk that loses its power
            except FileNotFoundError:
                return False  # another process took it away
            finally:
                shutil.rmtree(grave)
        return True

    def _clear_leftovers(self) -> None:
        """Whoever uses staging holds the lock, until it is done or dead: while nobody does, all there is dead."""
        try:
            with self._lock("lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                for leftover in self._staging.iterdir():
                    shutil.rmtree(leftover)
        except BlockingIOError:
            return  # somebody is at work; the next to open the store clears

    @contextmanager
    def _lock(self, name: str, mode: int) -> Iterator[None]:
        descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, mode)
            yield
        finally:
            os.close(descriptor)  # and with it the lock


def _copy(source: Path, target: Path) -> None:
    """Copies an adapter, with what lies beside it for its check. Raises RefusedError when it cannot be read as such."""
    folder = open_folder(source)
    try:
        for name in ADAPTER_FILES:
            with open_file(folder, name) as original:
                _copy_file(original, target / name)
        for name in BESIDE:
            with suppress(RefusedError), open_file(folder, name) as original:  # not there, or not fit to be looked at
                _copy_file(original, target / name)
    finally:
        os.close(folder)


def _copy_file(original: FileIO, target: Path) -> None:
    with target.open("xb") as copy:
        left = MAX_BYTES[target.name]
        while chunk := original.read(_CHUNK):
            left -= len(chunk)
            if left < 0:  # it grows while it is read
                raise too_large(target.name, MAX_BYTES[target.name])
            copy.write(chunk)
        os.fchmod(copy.fileno(), 0o444)


def digest_of(path: Path) -> str:
    """The digest that the adapter in the folder `path` has in a store. Raises RefusedError, OSError."""
    total = hashlib.sha256()
    folder = open_folder(path)
    try:
        for name in sorted(ADAPTER_FILES):
            with open_file(folder, name) as file:
                total.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    finally:
        os.close(folder)
    return total.hexdigest()


def _damage(stored: StoredAdapter) -> str | None:
    """What is wrong with the files of a version."""
    try:
        as_added = sorted(os.listdir(stored.path)) == sorted(ADAPTER_FILES) and digest_of(stored.path) == stored.digest
    except (RefusedError, FileNotFoundError, NotADirectoryError) as error:
        return str(error)
    return None if as_added else "its files are not those that were added"


def _mark(folder: Path) -> tuple[int, int] | None:
    """Tells a folder from another one that has come in its place; None where there is none."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
