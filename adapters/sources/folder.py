"""Source folders: every folder in them that holds an adapter_config.json is an adapter, named by its folder."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.findings import Finding


@dataclass(frozen=True, slots=True)
class FolderState:
    """An adapter folder at the moment of a scan. Two scans with equal `fingerprint` saw the same files."""

    name: str
    path: Path
    fingerprint: str
    complete: bool  # all files of an adapter are there


@dataclass(frozen=True, slots=True)
class Scan:
    """What the source folders offered at one moment."""

    adapters: Mapping[str, FolderState]
    findings: tuple[Finding, ...]  # a source that cannot be read, a name outside the grammar, a name offered twice
    whole: bool  # all sources could be read: only then does absence mean something


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do about it. Each folder stands in at most one of these."""

    appeared: tuple[FolderState, ...]
    changed: tuple[FolderState, ...]
    gone: tuple[str, ...]
    settling: tuple[str, ...]  # still being written: look again


def scan(sources: Iterable[Path]) -> Scan:
    """Looks at the source folders once; reads names, sizes and times, no contents. Never raises OSError."""
    raise NotImplementedError


def changes(known: Mapping[str, str], before: Scan, after: Scan) -> Changes:
    """Compares two scans, some time apart, with what the caller took up last (`known`: name → fingerprint).

    A folder counts when both scans saw the same of it: one that is still being written changes from scan to scan, and
    one that is being replaced is missing only for a moment.
    """
    raise NotImplementedError
