"""One at a time: two makes that start together share what the first of them makes."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(place: Path) -> Iterator[None]:
    """Waits for its turn on `place`, a file made for this. The kernel ends the turn of a process that dies."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
