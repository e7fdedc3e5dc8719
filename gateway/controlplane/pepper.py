"""The pepper: the secret that keys are hashed with, from the configuration or from a file that is made once."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gateway.controlplane.config import Config
from gateway.domain.errors import StorageError
from gateway.domain.keys import Pepper
from gateway.domain.secret import Secret

_BYTES = 32
_MIN_CHARACTERS = 32
_SQLITE = "sqlite:///"


def find_pepper(config: Config) -> Pepper:
    """`auth.pepper`, else the content of the file beside the storage, which is made if it is not there.  Whoever calls
    holds the storage.  Raises StorageError."""
    if config.auth.pepper is not None:
        return Pepper(config.auth.pepper)
    path = pepper_file(config.storage.file)
    try:
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StorageError(
            f"{path}, which keys are hashed with, cannot be read or made ({reason}): give the gateway's user the right "
            f"to read and write there, or set auth.pepper"
        ) from error
    if len(text) < _MIN_CHARACTERS:
        raise StorageError(f"{path}, which keys are hashed with, is damaged: put a sound copy in its place")
    return Pepper(Secret(text))


def pepper_file(storage_url: str) -> Path:
    """Where the pepper of this storage is kept."""
    return Path(os.path.realpath(storage_url.removeprefix(_SQLITE))).with_suffix(".pepper")


def _make(path: Path) -> None:
    """Whole and on the disk, or not there: a key that was made with half of it would be lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, secrets.token_hex(_BYTES).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
