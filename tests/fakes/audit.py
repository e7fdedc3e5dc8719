"""The log of administrative acts in memory."""

from __future__ import annotations

import time

from gateway.domain.audit import GENESIS, Act, Row, sealed


class MemoryAudit:
    """Keeps the rows."""

    def __init__(self) -> None:
        self.kept: list[Row] = []

    async def note(self, act: Act) -> None:
        before = self.kept[-1].hash if self.kept else GENESIS
        self.kept.append(sealed(act, len(self.kept) + 1, time.time_ns() // 1000, before))

    async def rows(self, after: int, limit: int) -> list[Row]:
        return self.kept[after : after + limit]
