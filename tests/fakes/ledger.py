"""A ledger in memory: what the data plane hands over, and trouble on demand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

from gateway.domain.entry import Entry
from gateway.domain.errors import StorageError


class MemoryLedger:
    """`running`: requests that were opened and not settled; `entries`: those that were settled, in order."""

    def __init__(self) -> None:
        self.trouble: StorageError | None = None
        self.running: dict[str, Entry] = {}
        self.entries: list[Entry] = []
        self.marks: dict[str, int] = {}

    def opened(self, request_id: str, known: Callable[[], Entry]) -> None:
        self.running[request_id] = known()

    def shown(self, request_id: str) -> bool:
        return self.trouble is None

    def checkpoint(self, request_id: str, completion: int) -> None:
        self.marks[request_id] = completion

    def settled(self, entry: Entry) -> bool:
        assert entry.request_id not in [one.request_id for one in self.entries], "settled twice"
        self.running.pop(entry.request_id, None)
        self.entries.append(entry)
        return self.trouble is None

    async def summary(self, by: str, since: date | None, until: date | None, key: str | None = None) -> list[Any]:
        return []

    async def requests(
        self, since: date | None, until: date | None, after: str | None, limit: int
    ) -> tuple[list[Any], bool]:
        return [], False
