"""The adapters that source folders hold, and the engines of the file that they fit: what a starting gateway would
find, learned without a store and without an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters import BaseModel, BaseModelError, FolderState, RefusedError, check, digest_of, scan
from gateway.controlplane.config import Config
from gateway.controlplane.hub import hub_cache, locate

_VERSION_DIGITS = 12


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """An adapter that at least one engine of the file would take.  `version`: the first digits of its digest."""

    name: str
    version: str
    path: str
    upstreams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What the source folders offer; `notes` say what is refused, or could not be judged."""

    adapters: tuple[FoundAdapter, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """What they may be asked for as."""
        return frozenset(name for a in self.adapters for name in (a.name, f"{a.name}@{a.version}"))


def find_adapters(config: Config, environ: Mapping[str, str]) -> Found:
    """Looks into `adapters.sources` and judges what is there against the engines of the file.  Blocks on the disk."""
    if not config.adapters.sources:
        return Found()
    seen = scan(config.adapters.sources)
    notes = [str(finding) for finding in seen.findings]
    bases: dict[str, tuple[BaseModel | None, int | None]] = {}
    for upstream in config.upstreams:
        if (engine := upstream.engine) is not None:
            base, note = _base(locate(engine.model, hub_cache(environ)))
            bases[upstream.name] = base, engine.max_lora_rank
            notes += [f"{upstream.name}: {note}"] if note else []
        elif upstream.kind == "vllm":
            notes.append(f"{upstream.name}: which adapters fit its base model is unknown until it is asked")
    adapters = []
    for folder in seen.adapters.values():
        try:
            adapters.append(_judge(folder, bases))
        except _Unfit as unfit:
            notes += [f"adapter {folder.name}: {line}" for line in unfit.reasons]
    return Found(tuple(adapters), tuple(notes))


class _Unfit(Exception):
    def __init__(self, reasons: Iterator[str]) -> None:
        self.reasons = tuple(dict.fromkeys(reasons))
        super().__init__()


def _judge(folder: FolderState, bases: Mapping[str, tuple[BaseModel | None, int | None]]) -> FoundAdapter:
    verdicts = {name: check(folder.path, base, rank) for name, (base, rank) in bases.items()}
    fits = tuple(name for name, verdict in verdicts.items() if verdict.ok)
    if not fits:
        raise _Unfit(str(finding) for verdict in verdicts.values() for finding in verdict.errors)
    try:
        version = digest_of(folder.path)[:_VERSION_DIGITS]
    except (RefusedError, OSError) as error:
        raise _Unfit(iter([str(error)])) from error
    return FoundAdapter(folder.name, version, str(folder.path), fits)


def _base(model: str) -> tuple[BaseModel | None, str]:
    """The base model, or why adapters cannot be compared with it."""
    if not Path(model).is_dir():
        return None, f"the base model {model} is not on this machine: adapters' shapes are not compared with it"
    try:
        return BaseModel.read(Path(model)), ""
    except BaseModelError as error:
        return None, f"adapters' shapes are not compared with the base model: {error}"
