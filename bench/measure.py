"""What a load through a target shows, and what it cost the target's process tree."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROMPT_BYTES = 1024
# What a target still does for an answer after the client has it (a ledger, metrics, closing) is part of its cost.
TRAILING_WORK_S = 0.3
PATIENCE_S = 90


class LoadFailed(Exception):
    """A target did not answer the load as it should; the message says how."""


@dataclass(frozen=True)
class Workload:
    """One kind of load: `connections` clients, each asking anew as soon as it has its answer.

    The model's name tells the fake upstream the pace: `paced-25` streams 25 chunks a second, `steady` does not wait.
    """

    name: str
    model: str
    tokens: int
    connections: int
    stream: bool = True

    @property
    def request(self) -> dict[str, object]:
        return chat(self.model, self.tokens, self.stream)


REQUESTS_1 = Workload("requests, c=1", "steady", 32, 1, stream=False)
REQUESTS_64 = Workload("requests, c=64", "steady", 32, 64, stream=False)
STREAMS_1 = Workload("streams, c=1", "paced-500", 8, 1)
STREAMS_64 = Workload("streams, c=64", "paced-25", 50, 64)
STREAMS_256 = Workload("streams, c=256", "paced-10", 30, 256)
WORKLOADS = (REQUESTS_1, REQUESTS_64, STREAMS_1, STREAMS_64, STREAMS_256)


def chat(model: str, tokens: int, stream: bool) -> dict[str, object]:
    """A chat request with a prompt of PROMPT_BYTES bytes."""
    prompt = ("Which of these would you pack for a week in the mountains, and why? " * 32)[:PROMPT_BYTES]
    request: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    return request | {"max_tokens": tokens, "temperature": 0.5} | ({"stream": True} if stream else {})


@dataclass(frozen=True)
class Reading:
    """One load through one target. Times in ms, CPU in seconds (user and system, all processes of the target)."""

    answers: int
    altered: int  # answers whose payload is not the upstream's, byte for byte
    chunks: int
    seconds: float
    cpu: float
    first_byte_p50: float
    first_byte_p99: float

    @property
    def cpu_ms_per_request(self) -> float:
        return self.cpu / self.answers * 1e3

    @property
    def cpu_us_per_chunk(self) -> float:
        return self.cpu / self.chunks * 1e6

    @property
    def requests_per_core_second(self) -> float:
        return self.answers / self.cpu


@dataclass(frozen=True)
class Load:
    """The load generator with its files: per workload the request, and the payload that the upstream answers."""

    binary: Path
    folder: Path

    def through(self, workload: Workload, port: int, headers: Mapping[str, str], pid: int, seconds: float) -> Reading:
        """Loads the server on `port`, whose process tree starts at `pid`. Raises LoadFailed."""
        name = workload.name.replace(", ", "-")
        body = self.folder / f"{name}.request.json"
        body.write_text(json.dumps(workload.request))
        ramp = min(1.0, seconds / 2) if workload.stream else 0
        command: list[str | Path] = [
            self.binary,
            "--port",
            str(port),
            "--body",
            body,
            *(part for name, value in headers.items() for part in ("--header", f"{name}: {value}")),
        ]
        command += ["--expect", self.folder / f"{name}.expected", "--connections", str(workload.connections)]
        command += ["--seconds", str(seconds), "--ramp", str(ramp), "--patience", str(PATIENCE_S)]
        before = cpu_seconds(pid)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        time.sleep(TRAILING_WORK_S)
        cpu = cpu_seconds(pid) - before
        if done.returncode:
            raise LoadFailed(f"{workload.name}: {done.stderr.strip() or f'load exited {done.returncode}'}")
        shown = json.loads(done.stdout)
        first = shown["first_byte_ms"]
        return Reading(
            shown["answers"], shown["altered"], shown["chunks"], shown["seconds"], cpu, first["p50"], first["p99"]
        )

    def expect(self, workload: Workload, payload: bytes) -> None:
        """Sets what every answer to this workload is compared with."""
        (self.folder / f"{workload.name.replace(', ', '-')}.expected").write_bytes(payload)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all below it, and of those that ended and were waited for."""
    ticks = 0
    for member in _tree(pid):
        # proc_pid_stat(5): utime, stime, cutime, cstime are fields 14 to 17.
        ticks += sum(int(value) for value in _stat(member)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process and all below it; pages that they share count for each."""
    pages = sum(int(_stat(member)[21]) for member in _tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (the second, the name, may hold spaces); zeros if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 50


def _tree(pid: int) -> list[int]:
    parents = {int(entry.name): int(_stat(int(entry.name))[1]) for entry in Path("/proc").glob("[0-9]*")}
    members = [pid]
    for member in members:  # grows while it is walked: breadth first
        members += [child for child, parent in parents.items() if parent == member]
    return members
