"""What a gateway has in common with others: its main database, and who speaks to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from gateway.controlplane.audit import AuditLog
from gateway.controlplane.keyring import Keyring
from gateway.controlplane.maindb import MainDatabase
from gateway.controlplane.sharedaudit import SharedAudit
from gateway.controlplane.sharedkeys import SharedKeys
from gateway.controlplane.shipper import Outbox, Shipper
from gateway.controlplane.storageurl import PostgreSQL
from gateway.domain.errors import StorageAway, StorageError

_TICK = 1.0  # seconds between two looks at what is to be copied
_FAREWELL = 5.0  # seconds that shipping the last rows may hold up the end


class Shared:
    """`own` is this gateway's own log of acts.  `changed` is called when the database was reached or lost, and when all
    keys became known."""

    def __init__(self, name: str, place: PostgreSQL, own: AuditLog, *, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.main = MainDatabase(name, place, changed=changed)
        self.audit = SharedAudit(self.main, own)
        self.shipper: Shipper | None = None

    def start(self) -> None:
        """Begins to reach it.  Raises StorageError when the driver is not installed."""
        self.main.start()

    @property
    def trouble(self) -> StorageAway | None:
        """Why the database cannot be used at this moment."""
        return self.main.trouble

    @property
    def unshipped(self) -> int:
        """Rows of the ledger that wait for it."""
        return 0 if self.shipper is None else self.shipper.unshipped

    def ship(self, outbox: Outbox) -> None:
        """These rows go there, once `run_shipper` runs."""
        self.shipper = Shipper(outbox, self.main)

    async def run_keys(self, records: SharedKeys, keyring: Keyring) -> NoReturn:
        """Follows what other gateways change."""
        await records.follow(keyring.learn, self._changed)

    async def run_audit(self) -> NoReturn:
        """Copies what could not be copied at once."""
        while True:
            await self.main.reached()
            with suppress(StorageError):
                await self.audit.copy()
            await asyncio.sleep(_TICK)

    async def run_shipper(self) -> None:
        """Ships, if there is anything to ship."""
        if self.shipper is not None:
            await self.shipper.run()
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Ships the last rows if that is quickly done; they are kept otherwise.  Nobody else uses it any more."""
        if self.shipper is not None and self.trouble is None:
            with suppress(StorageError, TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await self.shipper.flush()
        await self.main.close()
