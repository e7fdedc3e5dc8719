"""Imports one adapter into the store, in a process of its own: what a stranger packed is read where it can harm nobody.

    python -m adapters.importing

Standard input: one line, the job; then nothing, until it ends. Its end before the job is done ends this process, too:
so nothing goes on when whoever asked for it is gone.

    {"store": FOLDER,
     "source": {"kind": "folder"|"archive", "path"} | {"kind": "hf"|"modelscope", "repo", "revision"?, "subfolder"?}
             | {"kind": "https"|"s3", "url", "sha256"},
     "hosts": [{"base": FOLDER|null, "max_lora_rank": N|null}],     what it is judged against
     "limits": {"bytes": N, "seconds": S, "memory": N}}             of the adapter's files; of all; of the address space

Standard output: JSON, a line each; the last one is Done, Refused or Failed.

    {"phase": "Fetching", "done": BYTES, "total": BYTES|null, "note": TEXT}     at most five a second
    {"phase": "Validating"}
    {"phase": "Done", "digest", "path", "base", "rank", "size", "source", "verdicts"}
    {"phase": "Refused", "findings", "verdicts"?}     the adapter, or how it is packed; it will not help to try again
    {"phase": "Failed", "reason"}                     the way there: the network, the disk, a limit; it may help

`verdicts` has one entry for each host, in their order, as `Verdict.as_json` has it. An adapter is kept when it fits one
of them; without hosts it is judged by itself, as if there were one of which nothing is known. `source` is where it came
from, a revision resolved to its commit; `size` is bytes in an engine's memory.

The limits are set before anything of the adapter is read. The environment gives proxies, certificates and tokens, as
`adapters.sources.remote` says; none of them is ever written out.
"""

import errno
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from adapters.base_model import BaseModel, BaseModelError
from adapters.files import WEIGHTS
from adapters.findings import Code, Finding, RefusedError
from adapters.inspect import Inspection
from adapters.job import Host, Job, Limits, parse
from adapters.sources.archive import unpack
from adapters.sources.checkpoints import adapter_folder
from adapters.sources.fetching import FetchError
from adapters.sources.source import ArchiveSource, FolderSource, HubSource, SourceError, UrlSource
from adapters.store import AdapterStore, StoredAdapter, StoreError
from adapters.validate import Verdict, check

_MAX_JOB = 1 << 20  # bytes
_OPEN_FILES = 256
_NICENESS = 5
_INTERVAL = 0.2  # seconds between two lines of progress

# How a pickle, and how the zip archive of torch.save begins; no safetensors file of sane size does.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

Tell = Callable[[Mapping[str, object]], None]


class Progress:
    """Tells how far the fetching is, at most a few times a second."""

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._due = clock()

    def __call__(self, done: int, total: int | None) -> None:
        now = self._clock()
        if now >= self._due:
            self._due = now + _INTERVAL
            self._tell({"phase": "Fetching", "done": done, "total": total, "note": ""})

    def note(self, text: str) -> None:
        """Says something that people should know; nothing is counted yet."""
        self._tell({"phase": "Fetching", "done": 0, "total": None, "note": text})


class _Judge:
    """Judges a staged copy against every host; equal hosts are asked once."""

    def __init__(self, hosts: Sequence[Host], tell: Tell) -> None:
        self._hosts = hosts
        self._tell = tell
        self.verdicts: tuple[Verdict, ...] = ()

    def __call__(self, copy: Path) -> None:
        """Raises RefusedError when it fits no host."""
        self._tell({"phase": "Validating"})
        _refuse_pickle(copy / WEIGHTS)
        found = {host: _verdict(copy, host) for host in self._hosts}
        self.verdicts = tuple(found[host] for host in self._hosts)
        self.fitting()

    def fitting(self) -> Inspection:
        """What the adapter is, as the first host that it fits sees it. Raises RefusedError when it fits none."""
        for verdict in self.verdicts:
            if verdict.ok and verdict.inspection is not None:
                return verdict.inspection
        errors = [finding for verdict in self.verdicts for finding in verdict.errors]
        raise RefusedError(*dict.fromkeys(errors))


def run(job: Job, tell: Tell) -> None:
    """Does the job and tells its end. Never raises for what is wrong with the adapter, its source or the disk."""
    judge = _Judge(job.hosts or (Host(),), tell)
    try:
        source, stored = _import(job, judge, Progress(tell))
        found = judge.fitting()
        tell(
            {
                "phase": "Done",
                "digest": stored.digest,
                "path": str(stored.path),
                "base": found.manifest.base_model or "",
                "rank": found.rank,
                "size": found.memory_bytes(),
                "source": source,
                "verdicts": [verdict.as_json() for verdict in judge.verdicts],
            }
        )
    except RefusedError as refused:
        findings = Verdict(refused.findings, None).as_json()["findings"]
        verdicts = [verdict.as_json() for verdict in judge.verdicts]
        tell({"phase": "Refused", "findings": findings, "verdicts": verdicts})
    except (FetchError, SourceError, StoreError) as error:
        tell({"phase": "Failed", "reason": str(error)})
    except MemoryError:
        reason = f"it takes more than {job.limits.memory >> 20} MiB of memory to read this adapter"
        tell({"phase": "Failed", "reason": reason})
    except BrokenPipeError:
        raise  # nobody listens
    except OSError as error:
        tell({"phase": "Failed", "reason": _in_words(error, job)})


def _import(job: Job, judge: _Judge, progress: Progress) -> tuple[str, StoredAdapter]:
    """Fetches, judges and keeps; the resolved source, and the version."""
    store = AdapterStore.open(job.store)
    match job.source:
        case FolderSource(path):
            folder = _local(path)
            if folder != path:
                progress.note(f"there is no adapter at the top: taking {folder.name}")
            return str(FolderSource(folder)), store.add(folder, judge)
        case ArchiveSource(path):
            stored = store.take(lambda target: unpack(path, target, job.limits.bytes, progress), judge)
            return str(job.source), stored
        case HubSource() | UrlSource():
            # Only here, because a local import should not wait for an HTTP client to be loaded: it takes 0.2 s.
            from adapters.sources import remote  # noqa: PLC0415

            with remote.fetched(job.source, job.store / "parts", job.limits.bytes, os.environ, progress) as fetched:
                return fetched.source, store.take(fetched.fill, judge)


def _local(path: Path) -> Path:
    try:
        return adapter_folder(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path  # reading it tells what is wrong


def _verdict(copy: Path, host: Host) -> Verdict:
    if host.base is None:
        return check(copy, None, host.max_lora_rank)
    try:
        return check(copy, BaseModel.read(Path(host.base)), host.max_lora_rank)
    except BaseModelError as error:
        verdict = check(copy, None, host.max_lora_rank)
        why = Finding(Code.BASE_UNKNOWN, str(error), "mend the base model's folder, and check again", "warning")
        return Verdict((*verdict.findings, why), verdict.inspection)


def _refuse_pickle(weights: Path) -> None:
    """The check would refuse it as no safetensors file; this says what it is."""
    with weights.open("rb") as file:
        if file.read(4).startswith(_PICKLES):
            raise RefusedError(
                Finding(
                    Code.PICKLE,
                    f"{WEIGHTS} is a pickle under another name, which can run code when it is read",
                    "only safetensors are taken: save the adapter with peft's save_pretrained()",
                )
            )


def _in_words(error: OSError, job: Job) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"there is no space left in the store {job.store}"
    if error.errno == errno.EFBIG:
        return f"a file of it is larger than {job.limits.bytes} bytes"
    where = f" ({error.filename})" if error.filename else ""
    return f"the store {job.store} does not take it: {error.strerror or error}{where}"


def confine(limits: Limits) -> None:
    """Bounds what this process may use until its end; the kernel keeps to it."""
    seconds = max(1, round(limits.seconds))
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)  # nobody handles its signal: it is the end
    for which, limit in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, limits.bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, highest = resource.getrlimit(which)
        limit = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
        resource.setrlimit(which, (limit, limit))
    os.nice(_NICENESS)


def _die_with(lifeline: BinaryIO) -> None:
    lifeline.read()
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """The exit status says whether an end was told, not which."""
    lines = sys.stdout.buffer

    def tell(line: Mapping[str, object]) -> None:
        lines.write(json.dumps(line).encode() + b"\n")
        lines.flush()

    try:
        job = parse(sys.stdin.buffer.readline(_MAX_JOB))
    except ValueError as error:
        tell({"phase": "Failed", "reason": str(error)})
        return 0
    confine(job.limits)
    threading.Thread(target=_die_with, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        run(job, tell)
    except BrokenPipeError:
        return 1
    lines.flush()
    # The thread is within a read, which an orderly end would wait for.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
