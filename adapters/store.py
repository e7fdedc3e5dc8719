"""A content-addressed, immutable store of adapters.

    ROOT/lock                      held shared while something is added, exclusively while leftovers are cleared
    ROOT/staging/<random>/         a copy being made
    ROOT/sha256/<digest>/          a version: adapter_config.json, adapter_model.safetensors, read-only

A version appears by one rename after its files are on the disk, and never changes afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class StoreError(Exception):
    """The store cannot do what was asked; the text says why. The store itself is as whole as before."""


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """A version in the store. `digest` (64 hex digits) names its content, `path` is absolute and never changes."""

    digest: str
    path: Path

    @property
    def version(self) -> str:
        """The short name of the content: the first 12 hex digits of the digest."""
        return self.digest[:12]


@dataclass(frozen=True, slots=True)
class AdapterStore:
    root: Path

    @classmethod
    def open(cls, root: Path) -> "AdapterStore":
        """Makes the store where there is none, and clears what a killed process left in staging."""
        raise NotImplementedError

    def add(self, folder: Path, accept: Callable[[Path], None] | None = None) -> StoredAdapter:
        """Copies the adapter in `folder` into the store and returns the version; the same content is the same version.

        `accept` is called with the copy before it gets its name, and refuses it by raising: so what was judged is what
        is kept, whatever happens to `folder` meanwhile. What it raises is raised here, and the copy is gone.
        Raises RefusedError when the folder's files cannot be read as an adapter's, StoreError, OSError (disk full).
        """
        raise NotImplementedError

    def list(self) -> tuple[StoredAdapter, ...]:
        """All versions, sorted by digest."""
        raise NotImplementedError

    def get(self, digest: str) -> StoredAdapter | None:
        raise NotImplementedError

    def verify(self, digest: str) -> StoredAdapter:
        """Reads a version again and compares it with its digest. Raises StoreError when it is missing or differs."""
        raise NotImplementedError
