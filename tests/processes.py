"""Looking after process trees."""

from __future__ import annotations

from contextlib import suppress

import psutil


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    running = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it may end between two looks
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running


def bury(processes: list[psutil.Process]) -> None:
    """After a failed test: nothing of it stays."""
    for process in alive(processes):
        with suppress(psutil.NoSuchProcess):
            process.kill()
