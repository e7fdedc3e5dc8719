"""The versions of the desired state as one engine is told of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from adapters.sources.source import HubSource, SourceError, parse_source
from gateway.controlplane.config import UpstreamSettings
from gateway.controlplane.drift import Copy, Hub
from gateway.controlplane.versions import Index


class Copies(Mapping[str, Copy]):
    """Adapter (`name@version`) → its copy, made when it is looked at: there may be thousands, and few are.

    `store`: the gateway's store as the engine sees it.
    """

    def __init__(self, index: Index, upstream: UpstreamSettings, store: str) -> None:
        self._versions = index.by_adapter
        self._from_hub = upstream.adapters.from_hub
        self._store = store

    def __getitem__(self, adapter: str) -> Copy:
        version = self._versions[adapter].version
        hub = _on_hub(version.source) if self._from_hub else None
        return Copy(f"{self._store}/sha256/{version.digest}", version.digest, hub)

    def __iter__(self) -> Iterator[str]:
        return iter(self._versions)

    def __len__(self) -> int:
        return len(self._versions)

    def __contains__(self, adapter: object) -> bool:
        return adapter in self._versions


def store_of(upstream: UpstreamSettings, root: Path) -> str:
    """The store's folder as the engine sees it."""
    return upstream.adapters.store or str(root)


def _on_hub(source: str) -> Hub | None:
    """The repository that a version came from whole, where an engine may fetch it by itself."""
    try:
        parsed = parse_source(source)
    except SourceError:
        return None  # a folder or an upload
    if isinstance(parsed, HubSource) and parsed.hub == "hf" and parsed.subfolder is None and parsed.revision:
        return Hub(parsed.repo, parsed.revision)
    return None
