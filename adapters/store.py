"""A content-addressed, immutable store of adapters.

    ROOT/lock                      held shared while something is added, exclusively while leftovers are cleared
    ROOT/staging/<random>/         a copy being made
    ROOT/sha256/<digest>/          a version: adapter_config.json and adapter_model.safetensors, read-only

A version appears by one rename, after its files are on the disk, and never changes afterwards: whoever sees a folder
under sha256/ sees a whole version, also after kill -9 or a power cut. The digest is what coreutils compute, too:

    cd ROOT/sha256/<digest> && sha256sum adapter_config.json adapter_model.safetensors | sha256sum
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.files import ADAPTER_FILES, MAX_BYTES, open_file, open_folder
from adapters.findings import Code, Finding, RefusedError

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CHUNK = 1 << 20  # bytes


class StoreError(Exception):
    """A version is not what its digest says, or not there; the text names it."""


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
        """Copies the adapter in `folder` into the store and returns the version; the same content is the same version.

        `accept` is called with the copy before it gets its name, and refuses it by raising: so what was judged is what
        is kept, whatever happens to `folder` meanwhile. What it raises is raised here, and the copy is gone.
        Raises RefusedError when the folder's files cannot be read as an adapter's, StoreError when the store holds this
        version but no longer as it was added, OSError (disk full).
        """
        with self._lock(fcntl.LOCK_SH):
            copy = Path(tempfile.mkdtemp(dir=self._staging))
            try:
                _copy(folder, copy)
                digest = digest_of(copy)
                if accept is not None:
                    accept(copy)
                if self.get(digest) is None:
                    self._publish(copy, digest)
                    return StoredAdapter(digest, self._versions / digest)
                return self.verify(digest)
            finally:
                shutil.rmtree(copy, ignore_errors=True)  # nothing is left of it once it is published

    def versions(self) -> tuple[StoredAdapter, ...]:
        """All versions, sorted by digest."""
        names = sorted(filter(_DIGEST.fullmatch, os.listdir(self._versions)))
        return tuple(StoredAdapter(name, self._versions / name) for name in names)

    def get(self, digest: str) -> StoredAdapter | None:
        """The version with this digest, if it was added."""
        path = self._versions / digest
        return StoredAdapter(digest, path) if _DIGEST.fullmatch(digest) and path.is_dir() else None

    def verify(self, digest: str) -> StoredAdapter:
        """Reads a version again and compares it with its digest. Raises StoreError when it is missing or differs."""
        stored = self.get(digest)
        if stored is None:
            raise StoreError(f"{self.root} holds no version {digest[:64]}")
        try:
            whole = sorted(os.listdir(stored.path)) == sorted(ADAPTER_FILES) and digest_of(stored.path) == digest
        except RefusedError as refused:
            raise StoreError(f"{stored.path} is damaged: {refused}") from refused
        if not whole:
            raise StoreError(f"{stored.path} is damaged: its files are not those that were added")
        return stored

    @property
    def _staging(self) -> Path:
        return self.root / "staging"

    @property
    def _versions(self) -> Path:
        return self.root / "sha256"

    def _publish(self, copy: Path, digest: str) -> None:
        for name in ADAPTER_FILES:
            _sync(copy / name)
        copy.chmod(0o755)  # the engine may run as somebody else
        _sync(copy)
        try:
            copy.rename(self._versions / digest)
        except OSError as error:
            # Another process published the same content in the meantime.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _sync(self._versions)

    def _clear_leftovers(self) -> None:
        """Whoever adds holds the lock, until it is done or dead: while nobody does, all in staging is dead."""
        try:
            with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
                for leftover in self._staging.iterdir():
                    shutil.rmtree(leftover)
        except BlockingIOError:
            return  # somebody is adding; the next to open the store clears

    @contextmanager
    def _lock(self, mode: int) -> Iterator[None]:
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, mode)
            yield
        finally:
            os.close(descriptor)  # and with it the lock


def _copy(source: Path, target: Path) -> None:
    """Copies the files of an adapter. Raises RefusedError when they are not to be read as such."""
    folder = open_folder(source)
    try:
        for name in ADAPTER_FILES:
            with open_file(folder, name) as original, (target / name).open("xb") as copy:
                left = MAX_BYTES[name]
                while chunk := original.read(_CHUNK):
                    left -= len(chunk)
                    if left < 0:  # it grows while it is read
                        raise RefusedError(Finding(Code.TOO_LARGE, f"{name} has no end", "let nobody write there"))
                    copy.write(chunk)
                os.fchmod(copy.fileno(), 0o444)
    finally:
        os.close(folder)


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
