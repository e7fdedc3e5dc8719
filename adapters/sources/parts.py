"""Folders for what is being fetched, so that another attempt goes on where one ended.

    PARTS/<key>/lock      held by the process that fetches
    PARTS/<key>/…         what has come

A folder goes when what was in it is in the store or refused, after a day, and when newer ones need its place.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.findings import RefusedError

_LOCK = "lock"
_MOST = 8  # folders that are kept
_AGE = 86_400.0  # seconds


@contextmanager
def part(parts: Path, source: str, wait: Callable[[], None]) -> Iterator[Path]:
    """The folder for this source, for one process at a time; `wait` is called before another one is waited for."""
    parts.mkdir(parents=True, exist_ok=True)
    folder = parts / hashlib.sha256(source.encode()).hexdigest()
    lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lock is None:
        wait()
    while lock is None:
        lock = _lock(folder, fcntl.LOCK_EX)
    try:
        _clear(parts, folder)
        yield folder
        shutil.rmtree(folder)
    except RefusedError:
        shutil.rmtree(folder)
        raise
    finally:
        os.close(lock)


def _lock(folder: Path, mode: int) -> int | None:
    """A descriptor that holds the folder's lock; None when another process has it, or has just removed the folder."""
    folder.mkdir(exist_ok=True)
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, mode)
        if os.fstat(descriptor).st_ino == os.stat(folder / _LOCK).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _clear(parts: Path, ours: Path) -> None:
    """Removes what nobody is fetching and nobody will miss."""
    others = sorted((_age(folder), folder) for folder in parts.iterdir() if folder != ours)
    for place, (age, folder) in enumerate(others, 2):
        if (age > _AGE or place > _MOST) and (lock := _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _age(folder: Path) -> float:
    """Seconds since something came into it."""
    times = [entry.stat(follow_symlinks=False).st_mtime for entry in os.scandir(folder)]
    return time.time() - max(times, default=0.0)
