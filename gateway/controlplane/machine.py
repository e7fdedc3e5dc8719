"""The machine that engines run on, as far as they are made to fit it."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of the container, where there is one


def memory(limit: Path = _CGROUP_LIMIT) -> int:
    """Bytes of memory that this process and those it starts may use, 0 when that cannot be told.

    https://docs.kernel.org/admin-guide/cgroup-v2.html, "memory.max": a number, or "max".
    """
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
    try:
        return min(physical, int(limit.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return physical
