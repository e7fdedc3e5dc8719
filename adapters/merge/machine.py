"""How much memory there is, and how much of it was used."""

import resource
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process could still take without swapping: the machine's, or what its container has left of its
    limit. None where the kernel does not say."""
    limits = [left for left in (_of_machine(), _of_container()) if left is not None]
    return min(limits, default=None)


def peak_memory() -> int:
    """Bytes of memory that this process held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = (line.split() for line in lines)
    return next((int(words[1]) << 10 for words in fields if words[0] == "MemAvailable:"), None)


def _of_container() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
