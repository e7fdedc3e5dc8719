"""Administration of adapters: what the control plane does for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Page = dict[str, Any]  # a JSON object, as api/openapi.py describes it


class AdapterAdmin(Protocol):
    """The life of adapters.  What is returned is JSON: a row is one version, an adapter its rows and where its name
    points to, an import what becomes of a source (schemas `AdapterVersion`, `Adapter`, `Import` of api/openapi.py).

    `name` is within the grammar of names; `version` is 12 to 64 hexadecimal digits, or a public name's `…@version`
    without the name.  `settings` holds those of `pinned` (bool), `load` ("eager", "lazy" or None for what the file
    says) and `upstreams` (list of names, or None for wherever it fits) that were given.

    All raise errors of gateway.domain.errors, with sentences for people: NotFound for what is not there, Conflict for a
    move that cannot be, InvalidRequest for a source or an upstream that cannot be.  A move that is returned from is
    durable.
    """

    @property
    def uploads(self) -> Path:
        """The folder that archives are received in, on the store's file system; cleared at start."""
        ...

    async def rows(self) -> list[Page]:
        """Every version of every adapter, by name, oldest version first."""
        ...

    async def show(self, name: str) -> Page:
        """One adapter."""
        ...

    async def add(
        self, name: str, source: str, *, digest: str | None, promote: bool, settings: Mapping[str, Any]
    ) -> Page:
        """Begins to import a source with a scheme (`hf://`, `modelscope://`, `https://`, `s3://`; never a path) and
        returns the import.  `digest`: SHA-256 of what a URL has; `promote`: the name moves when the version is Ready.
        """
        ...

    async def receive(self, name: str, archive: Path, *, promote: bool, settings: Mapping[str, Any]) -> Page:
        """Begins to import an archive that lies in `uploads`, and returns the import.  The file is the callee's from
        the call on, whatever comes of it: it removes it."""
        ...

    async def imports(self, id: str) -> Page:
        """How far an import is.  Ended ones are remembered for a while."""
        ...

    async def promote(self, name: str, version: str) -> Page:
        """Points the name to the version and returns the adapter: at once when the version is Ready, else when it is,
        and `next` names it until then.  Nothing changes when the name points to it already."""
        ...

    async def rollback(self, name: str) -> Page:
        """Points the name to what it pointed to before, and returns the adapter."""
        ...

    async def canary(self, name: str, version: str, weight: float) -> Page:
        """Gives the version `weight` percent of the name's traffic (0 ends it), and returns the adapter."""
        ...

    async def configure(self, name: str, settings: Mapping[str, Any]) -> Page:
        """Changes the settings that are given, and returns the adapter."""
        ...

    async def load(self, name: str, version: str | None) -> Page:
        """Asks for the version (None: the current one) as a request would, and returns the adapter when it is Ready.
        Raises when it Failed, with the reason.  Waits for as long as it takes: the caller bounds it."""
        ...

    async def unload(self, name: str, version: str | None) -> Page:
        """Makes engines let go of the version (None: all of the name's) until somebody asks for it or loads it, and
        returns the adapter at once: what runs is finished first.  The current version of a pinned adapter: Conflict.
        """
        ...

    async def remove(self, name: str, version: str | None) -> Page | None:
        """Removes the version (None: the adapter), and returns what is left of the adapter, None when nothing is."""
        ...
