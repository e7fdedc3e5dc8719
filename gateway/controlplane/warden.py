"""Stands between the gateway and an engine, so that no process of the engine outlives the gateway.

    python -I -S warden.py GRACE COMMAND [ARGUMENT ...]

Runs COMMAND as its child and exits with the child's code (128 + n when signal n ended it).  Before it exits, however it
comes to that, it kills every descendant and proves that none is left.  It comes to that when

- the child ends,
- its standard input ends: whoever started it holds the other end of that pipe, so this is how their death shows, even
  by `kill -9`; everything is killed at once,
- GRACE seconds have passed since a SIGTERM, SIGINT or SIGHUP, which it hands to the child.

A warden that is itself killed with `kill -9` cannot do this.  So the gateway starts two, one as the other's child:

    gateway ── warden ── warden ── vllm serve ── EngineCore ── workers

The outer one's death is the end of the inner one's standard input; the inner one's death is that of the outer one's
child.  Whichever of the three dies, the next one kills the engine.

Linux only: it needs PR_SET_CHILD_SUBREAPER (prctl(2)), through which a descendant whose parent is gone becomes our
child, whatever session or group it moved to; so "no children left" means that no descendant is left.
Standard library only, and run without site-packages: it must start fast and depend on nothing that can break.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILLED = 128 + signal.SIGKILL
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # the shell's words for "could not be run at all"

_STDIN = 0
_ASKED_TO_STOP = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def prctl(option: int, value: int) -> None:
    """prctl(2); raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main(arguments: list[str]) -> int:
    """Guards one command; the exit code."""
    grace, command = float(arguments[0]), arguments[1:]
    # An outer warden asked the kernel to kill us with it.  From here on we notice its death ourselves, and must live
    # to clean up after it.
    prctl(PR_SET_PDEATHSIG, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signals = _signal_pipe()
    lifeline, _held = os.pipe()  # the child's standard input; `_held` closes with us and is never written to
    child = _spawn(command, lifeline)
    os.close(lifeline)
    code = _guard(child, grace, signals)
    return _kill_descendants(child, code)


def _signal_pipe() -> int:
    """A descriptor from which the numbers of arriving signals can be read."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_ASKED_TO_STOP):
        signal.signal(number, lambda *_: None)
    return readable


def _spawn(command: list[str], stdin: int) -> int:
    """Starts the command in a process group of its own; its process id."""
    us = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, stdin, us)
    return child


def _become(command: list[str], stdin: int, parent: int) -> NoReturn:
    """In the fresh child: turns into the command, or exits as a shell would."""
    try:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above could see it
            os._exit(KILLED)
        os.dup2(stdin, _STDIN)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and that would be inherited
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(2, f"cannot run {command[0]!r}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def _guard(child: int, grace: float, signals: int) -> int | None:
    """Waits until it is time to end; the child's code if it is known by then."""
    poll = select.poll()
    poll.register(_STDIN, select.POLLIN)
    poll.register(signals, select.POLLIN)
    deadline: float | None = None
    while deadline is None or time.monotonic() < deadline:
        ready = dict(poll.poll(None if deadline is None else (deadline - time.monotonic()) * 1000))
        if _STDIN in ready and not os.read(_STDIN, 4096):
            return None
        if signals in ready and not _ASKED_TO_STOP.isdisjoint(os.read(signals, 4096)) and deadline is None:
            deadline = time.monotonic() + grace
            os.kill(child, signal.SIGTERM)
        code, _ = _reap(child)
        if code is not None:
            return code
    return None


def _reap(child: int) -> tuple[int | None, bool]:
    """Takes leave of all children that have ended: the code of `child` if it was among them, and whether any
    other process is left."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, False
        if pid == 0:
            return code, True
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code


def _kill_descendants(child: int, code: int | None) -> int:
    """Kills until nothing is left to kill; the child's code.

    Asking the kernel for our children closes the race with a process that forks while we look: it is found in the
    next round, and there is always one until we have no child.
    """
    pause = 0.001
    while True:
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        found, left = _reap(child)
        code = found if code is None else code
        if not left:
            return KILLED if code is None else code
        time.sleep(pause)
        pause = min(2 * pause, 0.1)


def _descendants() -> list[int]:
    """All processes below us, as /proc shows them."""
    children: dict[int, list[int]] = {}
    for pid, parent in _processes():
        children.setdefault(parent, []).append(pid)
    found = children.get(os.getpid(), [])
    for pid in found:  # grows while we walk it
        found.extend(children.get(pid, []))
    return found


def _processes() -> Iterator[tuple[int, int]]:
    """Each process and its parent."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:  # it ended while we looked
            continue
        # proc(5): pid (name) state ppid …; the name may hold anything, also brackets
        yield int(name), int(stat.rpartition(b")")[2].split()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
