"""Source folders: every folder in one that holds an adapter_config.json is an adapter, named by its folder.

A source that holds an adapter_config.json itself is one adapter under its own name, and its subfolders are that
adapter's business (checkpoint-500, …): they are not offered. Nor are folders further down, or those whose name begins
with a dot (a copy in progress, a version-control folder). An adapter's folder may be a link, its files may not.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.files import ADAPTER_FILES, CONFIG, WEIGHTS, open_file, open_folder
from adapters.findings import Code, Finding, RefusedError, quote

# The grammar of adapter names; it is also what keeps a name from being a path.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


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
    """What there is to do. A name stands in at most one of these; where nothing is to be done, in none."""

    appeared: tuple[FolderState, ...]
    changed: tuple[FolderState, ...]
    gone: tuple[str, ...]
    settling: tuple[str, ...]  # being written or replaced, or not complete: look again


def scan(sources: Iterable[Path]) -> Scan:
    """Looks at the source folders once. Reads names, sizes and times, no contents; never raises OSError.

    The first of two folders with one name is the one that counts, in the order of the sources.
    """
    adapters: dict[str, FolderState] = {}
    findings: list[Finding] = []
    whole = True
    for source in sources:
        try:
            folders = _folders(source)
        except OSError as error:
            findings.append(_unreadable(source, error))
            whole = False
            continue
        for folder in folders:
            try:
                state = _state(folder)
            except OSError as error:
                findings.append(_unreadable(folder, error))
                whole = False
                continue
            if state is None:
                continue
            if (nameless := _nameless(state, adapters)) is not None:
                findings.append(nameless)
                continue
            adapters[state.name] = state
            findings.extend(_missing(state))
    return Scan(adapters, tuple(findings), whole)


def changes(known: Mapping[str, str], before: Scan, after: Scan) -> Changes:
    """Compares two scans, some time apart, with what the caller took up last (`known`: name → fingerprint).

    A folder counts when both scans saw the same of it: one that is being written differs from scan to scan, and one
    that is being replaced is missing only for a moment. While a source cannot be read, nothing is gone.
    """
    appeared: list[FolderState] = []
    changed: list[FolderState] = []
    settling: list[str] = []
    for name, state in after.adapters.items():
        if state.fingerprint == known.get(name):
            continue
        if not state.complete or before.adapters.get(name) != state:
            settling.append(name)
        elif name in known:
            changed.append(state)
        else:
            appeared.append(state)
    gone: list[str] = []
    for name in known.keys() - after.adapters.keys() if before.whole and after.whole else ():
        (settling if name in before.adapters else gone).append(name)
    return Changes(tuple(appeared), tuple(changed), tuple(sorted(gone)), tuple(settling))


def _folders(source: Path) -> list[Path]:
    if _stat(source / CONFIG) is not None:
        return [Path(os.path.abspath(source))]
    return [source / name for name in sorted(os.listdir(source)) if not name.startswith(".")]


def _state(folder: Path) -> FolderState | None:
    """None where this is no folder with an adapter_config.json, or not any more."""
    seen = {name: entry for name in ADAPTER_FILES if (entry := _stat(folder / name)) is not None}
    if CONFIG not in seen:
        return None
    # The inode tells a file that another of its size and time has replaced; ctime one whose time was set back.
    marks = [
        f"{name}:{entry.st_dev}:{entry.st_ino}:{entry.st_size}:{entry.st_mtime_ns}:{entry.st_ctime_ns}"
        for name, entry in seen.items()
    ]
    return FolderState(folder.name, folder, ";".join(marks), complete=len(seen) == len(ADAPTER_FILES))


def _stat(file: Path) -> os.stat_result | None:
    try:
        return os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _nameless(state: FolderState, adapters: Mapping[str, FolderState]) -> Finding | None:
    """Why the folder cannot have the name it has."""
    where = quote(str(state.path), 300)
    if not NAME.fullmatch(state.name):
        remedy = f"rename it to match {NAME.pattern}"
        return Finding(Code.NAME, f"the folder {where} does not have an adapter's name", remedy)
    if state.name in adapters:
        other = adapters[state.name].path
        return Finding(Code.NAME, f"{where} has the name of {other}, which comes first", "rename one of them")
    return None


def _missing(state: FolderState) -> tuple[Finding, ...]:
    """What keeps an incomplete folder from being taken up: it may be on its way, or never come."""
    if state.complete:
        return ()
    try:
        folder = open_folder(state.path)
        try:
            open_file(folder, WEIGHTS).close()
        finally:
            os.close(folder)
    except RefusedError as refused:
        return tuple(Finding(f.code, f"{state.name}: {f.message}", f.remedy, "warning") for f in refused.findings)
    return ()  # it has come since


def _unreadable(path: Path, error: OSError) -> Finding:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return Finding(
        Code.FOLDER, f"the source {quote(str(path), 300)} cannot be read ({reason})", "check path and rights"
    )
