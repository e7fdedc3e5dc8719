"""How a merge or an export tells where it is: JSON, a line each, on standard output.

{"phase": "Merging"|"Verifying"|"Fetching"|"Converting"|"Uploading"|"Creating", "done": N, "total": N, "unit": TEXT}
{"phase": "Note", "text": TEXT}                  something that people should know
{"phase": "Done", …}                             the end; or
{"phase": "Failed", "reason": TEXT}
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO

_INTERVAL = 0.2  # seconds between two lines of one phase

Tell = Callable[[Mapping[str, object]], None]
"""Hands one line to whoever started this. Raises NobodyListensError when nobody is there any more."""


class NobodyListensError(Exception):
    """Whoever started this is gone, and what was begun is to be removed."""


class Progress:
    """Counts one phase from 0 to `total`; tells at most a few times a second, and the end."""

    def __init__(self, tell: Tell, phase: str, total: int, unit: str = "bytes") -> None:
        self._tell = tell
        self._phase = phase
        self._total = total
        self._unit = unit
        self._done = 0
        self._due = 0.0
        self.add(0)

    def add(self, count: int) -> None:
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        if now >= self._due or done == self._total:
            self._due = now + _INTERVAL
            self._tell({"phase": self._phase, "done": done, "total": self._total, "unit": self._unit})


def note(tell: Tell, text: str) -> None:
    """Says something that people should know."""
    tell({"phase": "Note", "text": text})


def standard_output() -> Tell:
    """Lines go to the standard output that this process began with; whatever else prints there goes to stderr.

    Libraries print as they like, and nothing of it may stand between the lines.
    """
    lines: BinaryIO = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(line: Mapping[str, object]) -> None:
        try:
            lines.write(json.dumps(line).encode() + b"\n")
        except BrokenPipeError as error:
            raise NobodyListensError from error

    return tell
