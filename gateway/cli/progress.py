"""Shows on stderr how far something is: a bar on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.cli.output import complain, printable


class Steps:
    """One step after the other."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._name = ""
        self._task: TaskID | None = None

    def show(self, name: str, done: int = 0, total: int | None = None) -> None:
        """This step is so far; `total` None: nobody knows how far it goes."""
        if self._bar is None:
            if name != self._name:
                complain(f"{name} …")
        elif self._task is None or name != self._name:
            if self._task is not None:
                self._bar.update(self._task, total=1, completed=1)
            self._task = self._bar.add_task(printable(name), total=total, completed=done)
        else:
            self._bar.update(self._task, total=total, completed=done)
        self._name = name


@contextmanager
def steps() -> Iterator[Steps]:
    """Shows steps until the block ends."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield Steps(None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield Steps(bar)
