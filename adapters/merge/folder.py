"""A folder that appears under its name whole, or not at all."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.merge.errors import MergeError

_SPARE = 64 << 20  # bytes that a disk should have left afterwards: tokenizer and index are among them


@contextmanager
def exported(target: Path) -> Iterator[Path]:
    """A new folder that gets the name `target` at the end of the block, when its files are on the disk.

    As `workplace` otherwise. Raises MergeError.
    """
    with workplace(target) as part:
        yield part
        settle(part)
        refuse_taken(target)
        part.rename(target)
        sync(target.parent)


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` for what is to become it; removed at the end of the block.

    A process that is killed leaves it behind as `.NAME.part`, and the next one that exports to the same place begins by
    emptying it; two cannot write there at once. Raises MergeError where `target` is taken: only an empty folder may be
    there.
    """
    refuse_taken(target)
    part = target.with_name(f".{target.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise MergeError(f"{part} cannot be written to ({error.strerror}): choose another place") from error
    try:
        _take(lock, part)
        try:
            yield part
        finally:
            if _is(lock, part):  # it may have got its name
                shutil.rmtree(part, ignore_errors=True)
    finally:
        os.close(lock)


def refuse_taken(target: Path) -> None:
    """Raises MergeError where there is something at `target` already."""
    if not os.path.lexists(target):
        return
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    raise MergeError(f"{target} exists and is not an empty folder: choose another name, or remove it first")


def require_disk(place: Path, size: int, what: str) -> None:
    """Raises MergeError where the disk under `place` (which need not exist) has less than `size` bytes free."""
    there = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < size + _SPARE:
        raise MergeError(
            f"{there} has {free / 1e9:.1f} GB free, {what} takes {size / 1e9:.1f} GB: free some, or choose another disk"
        )


def _take(lock: int, part: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise MergeError(f"another process is writing {part}: wait for it, or choose another name") from error
    if not _is(lock, part):
        raise MergeError(f"another process has just written what {part} was for: look there first")
    for left in part.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _is(folder: int, path: Path) -> bool:
    return path.is_dir() and os.path.samestat(os.fstat(folder), path.stat())


def settle(folder: Path) -> None:
    """Every file, and the folder's listing, on the disk; readable by all."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)


def sync(path: Path) -> None:
    """What the file, or the folder's listing, holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync a folder
            raise
    finally:
        os.close(descriptor)
