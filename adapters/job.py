"""What an import is asked to do: the one line that `adapters.importing` reads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters.sources.source import Source, as_job, from_job
from adapters.strict_json import loads


@dataclass(frozen=True, slots=True)
class Host:
    """What an adapter is judged against: a base model's folder and an engine's --max-lora-rank, where known."""

    base: str | None = None
    max_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one import: `bytes` of each file and of all, `seconds` it may take, `memory` in bytes of address space."""

    bytes: int = 20 << 30
    seconds: float = 3600.0
    memory: int = 4 << 30  # the headers of a large model's files and of an adapter, with room


@dataclass(frozen=True, slots=True)
class Job:
    """An adapter is taken from `source` into the store in the folder `store` when it fits one of the hosts."""

    store: Path
    source: Source
    hosts: tuple[Host, ...] = ()
    limits: Limits = Limits()


def as_line(job: Job) -> bytes:
    """The job as `adapters.importing` reads it."""
    values = {
        "store": str(job.store),
        "source": as_job(job.source),
        "hosts": [asdict(host) for host in job.hosts],
        "limits": asdict(job.limits),
    }
    return json.dumps(values).encode() + b"\n"


def parse(line: bytes) -> Job:
    """The job of a line. Raises ValueError."""
    try:
        values = loads(line)
        if not isinstance(values, dict):
            raise TypeError("not an object")
        return Job(
            Path(values["store"]),
            from_job(values["source"]),
            tuple(_host(host) for host in values["hosts"]),
            _limits(values["limits"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no job ({type(error).__name__}: {error})") from error


def _host(values: Mapping[str, object]) -> Host:
    base, rank = values["base"], values["max_lora_rank"]
    if isinstance(base, str | None) and isinstance(rank, int | None):
        return Host(base, rank)
    raise TypeError("a host has a folder and a rank, or null")


def _limits(values: Mapping[str, float]) -> Limits:
    return Limits(int(values["bytes"]), float(values["seconds"]), int(values["memory"]))
