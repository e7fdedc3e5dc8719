"""A ledger's file as an accountant sees it, with nothing of the gateway's own code."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

SUMS = ("prompt", "completion", "cached", "reasoning", "cost")
OF = ("day", "key", "team", "user", "model", "adapter", "upstream")


def ledger_of(folder: Path) -> Path:
    """Where the gateway of this folder has it."""
    return folder / "gateway.ledger.db"


def asked(path: Path, statement: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(statement)]


def rows(path: Path) -> list[dict[str, Any]]:
    """The settled requests, in the order of writing; checked: the file is sound, the sums of days are theirs, and no
    request has two."""
    found = asked(path, "SELECT seq >> 32 AS day, * FROM requests ORDER BY seq")
    assert [row["request_id"] for row in asked(path, "SELECT request_id FROM open_requests")] == []
    assert asked(path, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    twice = [name for name, count in Counter(row["request_id"] for row in found).items() if count > 1]
    assert not twice, twice
    assert summed(found) == {
        tuple(row[name] for name in OF): (row["requests"], *(row[name] for name in SUMS))
        for row in asked(path, "SELECT * FROM usage_days")
    }
    return found


def summed(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    sums: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for row in found:
        of = tuple(row[name] for name in OF)
        before = sums.get(of, (0,) * (1 + len(SUMS)))
        sums[of] = tuple(map(sum, zip(before, (1, *(row[name] for name in SUMS)), strict=True)))
    return sums
