"""Imports of adapters: each runs in a process of its own, and this is how the gateway starts, follows and ends one.

What a stranger packed is opened there and nowhere else (see `adapters.importing`, which also has the protocol).  The
process gets of our environment what its source needs, and nothing of it is left when `Imports.run` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import adapters
from adapters.findings import Code, Finding, Severity
from adapters.job import Host, Job, Limits, as_line
from adapters.sources.source import HubSource, Source, UrlSource
from gateway.controlplane.enginelog import LineReader
from gateway.controlplane.observed import Phase

log = logging.getLogger("gateway.adapters")

_LINE_LIMIT = 1 << 20  # bytes of a line: verdicts on hundreds of hosts
_LOG_PIECE = 8192
_GRACE = 5.0  # seconds after which we end a process that has not kept its own limit of time

_EVERYWHERE = frozenset({"PATH", "LANG", "LC_ALL", "TZ"})
_NETWORK = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"})
_CREDENTIALS = {"hf": ("HF_",), "modelscope": ("MODELSCOPE_",), "https": (), "s3": ("AWS_",)}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is: Fetching, with the bytes that are `done` of `total` (None: not known), or Validating.
    `note`: something that people should know, such as which checkpoint is taken."""

    phase: Phase
    done: int = 0
    total: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class HostVerdict:
    """What one host thinks of the adapter."""

    ok: bool
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """A version that is in the store and fits one host at least.

    `verdicts`: one for each host, in their order.  `base`: what it says that it was trained on.  `size`: bytes in an
    engine's memory.  `source`: where it came from, a revision resolved to its commit.
    """

    digest: str
    path: str
    base: str
    rank: int
    size: int
    source: str
    verdicts: tuple[HostVerdict, ...]


class ImportRefused(Exception):
    """The adapter, or how it is packed, is refused: to try again does not help.  `findings`: why, with what to do;
    `verdicts`: for each host, when it came so far."""

    def __init__(self, findings: Sequence[Finding], verdicts: Sequence[HostVerdict] = ()) -> None:
        super().__init__("; ".join(map(str, findings)))
        self.findings = tuple(findings)
        self.verdicts = tuple(verdicts)


class ImportFailed(Exception):
    """Something was in the way: the network, the disk, a limit.  The text says what."""


class Imports:
    """Runs imports into the store in the folder `store`, `at_once` at the same time; others wait their turn."""

    def __init__(
        self, store: Path, environ: Mapping[str, str], *, limits: Limits | None = None, at_once: int = 2
    ) -> None:
        self._store = store.absolute()
        self._environ = environ
        self._limits = limits or Limits()
        self._places = asyncio.Semaphore(at_once)

    async def run(self, source: Source, hosts: Sequence[Host], progress: Callable[[Progress], None]) -> Imported:
        """Imports one adapter and returns the version.  `progress` is called in the event loop and must not block.

        Raises ImportRefused and ImportFailed.  Cancelled, it ends the import; what was fetched by then is kept for the
        next attempt at the same source.
        """
        job = Job(self._store, source, tuple(hosts), self._limits)
        async with self._places:
            return await self._run(job, progress)

    async def _run(self, job: Job, progress: Callable[[Progress], None]) -> Imported:
        environment = import_environment(self._environ, job.source)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-s", "-m", "adapters.importing"),
                env=environment,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                limit=_LINE_LIMIT,
                start_new_session=True,
            )
        except OSError as error:
            raise ImportFailed(f"the import could not be started: {error}") from error
        complaints = asyncio.create_task(_log_complaints(process, secrets_of(environment)))
        try:
            async with asyncio.timeout(job.limits.seconds + _GRACE):
                last = await _follow(process, as_line(job), progress)
        except TimeoutError:
            raise ImportFailed(f"the import took longer than {job.limits.seconds:g} s") from None
        finally:
            await _end(process)
            await complaints
        if last is None:
            raise ImportFailed(_death(process.returncode, job.limits))
        return _outcome(last)


def import_environment(environ: Mapping[str, str], source: Source) -> dict[str, str]:
    """What of our environment the import of this source gets: a local archive sees neither proxies nor tokens."""
    names: Collection[str] = _EVERYWHERE
    prefixes: tuple[str, ...] = ()
    if isinstance(source, HubSource | UrlSource):
        kind = source.hub if isinstance(source, HubSource) else source.url.partition(":")[0]
        names, prefixes = _EVERYWHERE | _NETWORK, _CREDENTIALS[kind]
    kept = {name: value for name, value in environ.items() if name.upper() in names or name.startswith(prefixes)}
    return {**kept, "PYTHONPATH": str(Path(adapters.__file__).parents[1]), "PYTHONUTF8": "1"}


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """The values that no log may show."""
    telling = ("TOKEN", "SECRET", "KEY", "PROXY")  # a proxy's address may hold a password
    return [value for name, value in environment.items() if any(word in name.upper() for word in telling)]


async def _follow(process: Process, job: bytes, progress: Callable[[Progress], None]) -> Mapping[str, object] | None:
    """Hands over the job and reads what comes of it; the last line, or None when the process ends without one.

    Its standard input stays open: it ends itself when that ends, as it does when we are killed.
    """
    stdin, stdout = cast(StreamWriter, process.stdin), cast(StreamReader, process.stdout)
    # It is dead already, for which uvloop has a RuntimeError; how it died says why.
    with contextlib.suppress(ConnectionError, RuntimeError):
        stdin.write(job)
        await stdin.drain()
    while True:
        try:
            line = await stdout.readline()
            values = json.loads(line) if line else None
        except ValueError:  # longer than any line of ours, or no JSON
            values = "garbage"
        match values:
            case {"phase": "Fetching", "done": int(done), "total": int() | None as total, "note": str(note)}:
                progress(Progress(Phase.FETCHING, done, total, note))
            case {"phase": "Validating"}:
                progress(Progress(Phase.VALIDATING))
            case {"phase": "Done" | "Refused" | "Failed"}:
                return values
            case None:
                await process.wait()
                return None
            case _:
                raise ImportFailed("the import wrote a line that is none")


async def _end(process: Process) -> None:
    """Leaves nothing of the process and of what it may have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def _log_complaints(process: Process, secrets: Sequence[str]) -> None:
    """What it prints beside its lines is a bug of ours, for our log."""
    stderr, lines = cast(StreamReader, process.stderr), LineReader(secrets)
    while piece := await stderr.read(_LOG_PIECE):
        for line in lines.feed(piece):
            log.error("import: %s", line.text)
    for line in lines.end():
        log.error("import: %s", line.text)


def _outcome(last: Mapping[str, object]) -> Imported:
    """What the last line says.  Raises ImportRefused, ImportFailed."""
    try:
        match last:
            case {
                "phase": "Done",
                "digest": str(digest),
                "path": str(path),
                "base": str(base),
                "rank": int(rank),
                "size": int(size),
                "source": str(source),
                "verdicts": list(verdicts),
            }:
                return Imported(digest, path, base, rank, size, source, tuple(map(_verdict, verdicts)))
            case {"phase": "Refused", "findings": list(findings), "verdicts": list(verdicts)}:
                raise ImportRefused([_finding(finding) for finding in findings], [_verdict(v) for v in verdicts])
            case {"phase": "Failed", "reason": str(reason)}:
                raise ImportFailed(reason)
    except (KeyError, TypeError, ValueError):
        pass
    raise ImportFailed("the import ended with a line that is none")


def _verdict(values: Mapping[str, object]) -> HostVerdict:
    findings = values["findings"]
    if not isinstance(findings, list):
        raise TypeError
    return HostVerdict(values["ok"] is True, tuple(map(_finding, findings)))


def _finding(values: Mapping[str, str]) -> Finding:
    severity: Severity = "warning" if values["severity"] == "warning" else "error"
    return Finding(Code(values["code"]), str(values["message"]), str(values["remedy"]), severity)


def _death(code: int | None, limits: Limits) -> str:
    """Why a process ended that had not said how."""
    if code in (-signal.SIGALRM, -signal.SIGXCPU):
        return f"the import took longer than {limits.seconds:g} s"
    if code == -signal.SIGKILL:
        return "the import was killed: is there memory left on this machine?"
    return f"the import ended unexpectedly (code {code}); the gateway's log may say why"
