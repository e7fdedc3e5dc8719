"""Says what a long step is doing: a line that moves on a terminal, a few plain lines elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

PLAIN_INTERVAL = 10.0
"""Seconds between two lines of one step where nothing can be drawn over (a log, CI)."""

LAST_LINES = 30
"""How much of what a failed command printed is shown."""

BAR_WIDTH = 24
COUNT = re.compile(r"^(\d+)/(\d+)\s*(.*)$")
BOUND = Path(__file__).with_name("bound.py")


class StepError(RuntimeError):
    """A step failed. The text is for the person who started it: what failed, why, and what to do."""


def bar(note: str) -> str:
    """`7/12 rest` with its bar in front; any other note as it is."""
    match = COUNT.match(note)
    if not match or int(match[2]) == 0:
        return note
    done, total = int(match[1]), int(match[2])
    full = min(BAR_WIDTH, BAR_WIDTH * done // total)
    return f"{'━' * full}{'─' * (BAR_WIDTH - full)} {done}/{total} {match[3]}".rstrip()


class Step:
    """A step with a title, the time it takes, and notes in between. `note` may be called from any thread."""

    def __init__(self, title: str, out: TextIO | None = None) -> None:
        self._title = title
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._note = ""
        self._started = self._drawn = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._draw()
        self._ticker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._ticker.join()
        erase = "\r\x1b[2K" if self._terminal else ""
        mark = "✓" if kind is None else "✗"
        self._out.write(f"{erase}  {mark} {self._title}  ({time.monotonic() - self._started:.1f} s)\n")
        self._out.flush()

    def note(self, text: str) -> None:
        """Says what the step is at; `3/8 what` is drawn as a bar."""
        self._note = bar(text)
        self._draw()

    def _tick(self) -> None:
        while not self._ended.wait(1.0):
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            now = time.monotonic()
            if self._terminal:
                line = f"  … {self._title}  {now - self._started:3.0f} s  {self._note}"
                self._out.write("\r\x1b[2K" + line[: shutil.get_terminal_size().columns - 1])
            elif self._note and now - self._drawn >= PLAIN_INTERVAL:
                self._out.write(f"    {self._title}: {self._note}\n")
                self._drawn = now
            self._out.flush()


def bound(command: Sequence[str]) -> list[str]:
    """The command, made to get SIGTERM when this process dies, however it dies (see bound.py)."""
    return [sys.executable, str(BOUND), str(os.getpid()), *command]


def run(command: Sequence[str], on_line: Callable[[str], None], env: Mapping[str, str] | None = None) -> None:
    """Runs a command to its end, handing each line it prints to `on_line`.

    Raises StepError with the command's last lines when it fails.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        bound(command),
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                last.append(line)
                on_line(line.rstrip())
        except BaseException:  # Ctrl-C among them: the command must not go on behind our back
            child.terminate()
            raise
    if child.returncode:
        raise StepError(f"{' '.join(command[:4])} … ended with {child.returncode}:\n{''.join(last)}")
