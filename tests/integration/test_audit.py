"""S-25: what administrators did is in a log that nobody can change unnoticed."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.domain.audit import GENESIS, Act, Actor, Broken, Row, sealed, verified
from tests.integration.administration import BUTTONS, administered, with_adapter
from tests.integration.keyed import Keyed, keyed

ACTS = 12
COPIED = "at, who, address, act, target, outcome, detail, hash"


async def acted(gateway: Keyed) -> None:
    """Some acts, ACTS of them."""
    for number in range(ACTS // 3):
        made = await gateway.create(f"k{number}", metadata={"n": str(number)})
        await gateway.rotate(made["id"])
        await gateway.revoke(made["id"])


async def test_each_act_is_in_the_log_with_who_from_where_and_how_it_ended(tmp_path: Path) -> None:
    async with keyed(tmp_path, server={"trusted_proxies": ["127.0.0.1"]}) as gateway:
        gateway.client.headers["x-forwarded-for"] = "198.51.100.7"
        made = await gateway.create("anna", models=["m"])
        await gateway.call("PATCH", "keys/anna", {"owner": "Anna"})
        await gateway.rotate(made["id"], grace=5)
        await gateway.revoke(made["id"])
        await gateway.revoke(made["id"])
        await gateway.call("DELETE", "keys/tester", status=409)
        await gateway.call("POST", "keys", {"name": "tester"}, 409)
        await gateway.call("DELETE", "keys/nobody", status=404)
        rows = await gateway.audit()
    assert [(row["act"], row["target"], row["outcome"]) for row in rows] == [
        ("key.create", made["id"], "done"), ("key.configure", made["id"], "done"), ("key.rotate", made["id"], "done"),
        ("key.revoke", made["id"], "done"), ("key.revoke", "tester", "conflict"), ("key.create", "tester", "conflict"),
        ("key.revoke", "nobody", "not_found"),
    ]  # fmt: skip
    assert {(row["who"], row["address"]) for row in rows} == {("admin", "198.51.100.7")}
    assert json.loads(rows[0]["detail"]) == {"models": ["m"], "name": "anna"}
    assert [row["number"] for row in rows] == list(range(1, 8))
    assert len(list(verified(Row(**row) for row in rows))) == 7


async def test_acts_on_adapters_are_in_the_log_too(tmp_path: Path) -> None:
    async with administered(tmp_path) as running:
        one, two = with_adapter(running, "pirate", b"1", b"2")
        adapter = "/admin/v1/adapters/pirate"
        async with running.client() as client:
            secret = "https://files.example/pirate.zip?token=very-secret"
            await client.post("/admin/v1/adapters", json={"name": "ship", "source": secret, "digest": "ab" * 32})
            await client.put(f"{adapter}/archive?promote=true", content=b"3")
            await client.post(f"{adapter}/promote", json={"version": two})
            await client.post(f"{adapter}/rollback")
            await client.post(f"{adapter}/canary", json={"version": two, "weight": 12.5})
            await client.patch(adapter, json={"pinned": False})
            await client.post(f"{adapter}/load", json={"version": one})
            await client.post(f"{adapter}/unload")
            await client.delete(f"{adapter}/versions/{'0' * 12}")
            await client.delete(adapter)
            await client.get(adapter)
        with_adapter(running, "sailor", b"1")
        async with running.client(BUTTONS) as client:
            await client.post("/models/load", json={"model": "sailor"})
        rows = running.audit.kept
    assert [(row.act, row.target) for row in rows] == [
        ("adapter.add", "ship"), ("adapter.add", "pirate"), ("adapter.promote", "pirate"),
        ("adapter.rollback", "pirate"), ("adapter.canary", "pirate"), ("adapter.configure", "pirate"),
        ("adapter.load", "pirate"), ("adapter.unload", "pirate"), ("adapter.remove", "pirate"),
        ("adapter.remove", "pirate"), ("adapter.load", "sailor"),
    ]  # fmt: skip
    assert [row.who for row in rows] == ["admin"] * 10 + ["key buttons"]
    assert json.loads(rows[4].detail) == {"version": two, "weight": 12.5}
    assert rows[8].outcome == "not_found"
    assert "very-secret" not in str(rows)


async def test_the_log_is_listed_in_parts_and_verified_by_command(tmp_path: Path) -> None:
    async with keyed(tmp_path) as gateway:
        assert (await gateway.command("audit", "verify")).stdout == f"0 rows fit. Head: {GENESIS}\n"
        await acted(gateway)
        page = await gateway.call("GET", "audit?after=5&limit=4")
        assert ([row["number"] for row in page["data"]], page["has_more"]) == ([6, 7, 8, 9], True)
        assert not (await gateway.call("GET", "audit?after=8&limit=4"))["has_more"]
        for wrong in ("limit=0", "limit=1001", "after=-1", "after=x", "before=1"):
            await gateway.call("GET", f"audit?{wrong}", status=400)
        listed = await gateway.command("audit", "list", "--after", "1", "--limit", "2")
        assert [line.split()[0] for line in listed.stdout.splitlines()] == ["number", "2", "3"]
        told = json.loads((await gateway.command("audit", "verify", "--json")).stdout)
        assert told == {"rows": ACTS, "head": (await gateway.audit())[-1]["hash"]}
        await gateway.create("more")
        assert (await gateway.command("audit", "verify", "--head", told["head"])).returncode == 0


#: What somebody does to the database, with the number of the first row that does not fit afterwards.
TAMPERED: dict[str, tuple[str, int]] = {
    "who": ("UPDATE audit SET who = 'key anna' WHERE number = 5", 5),
    "address": ("UPDATE audit SET address = '198.51.100.9' WHERE number = 5", 5),
    "act": ("UPDATE audit SET act = 'key.configure' WHERE number = 5", 5),
    "target": ("UPDATE audit SET target = 'x' || target WHERE number = 5", 5),
    "outcome": ("UPDATE audit SET outcome = 'conflict' WHERE number = 5", 5),
    "time": ("UPDATE audit SET at = at + 1 WHERE number = 5", 5),
    "detail": ("UPDATE audit SET detail = detail || ' ' WHERE number = 5", 5),
    "hash": ("UPDATE audit SET hash = substr(hash, 2) || '0' WHERE number = 5", 5),
    "hash of another row": ("UPDATE audit SET hash = (SELECT hash FROM audit WHERE number = 4) WHERE number = 5", 5),
    "letters of a hash": ("UPDATE audit SET hash = upper(hash) WHERE number = 5", 5),
    "last row": (f"UPDATE audit SET who = 'nobody' WHERE number = {ACTS}", ACTS),
    "first row": ("UPDATE audit SET who = 'nobody' WHERE number = 1", 1),
    "number": ("UPDATE audit SET number = 100 WHERE number = 5", 5),
    "first row deleted": ("DELETE FROM audit WHERE number = 1", 1),
    "row deleted": ("DELETE FROM audit WHERE number = 5", 5),
    "rows deleted": ("DELETE FROM audit WHERE number BETWEEN 4 AND 7", 4),
    "row deleted and the rest moved up": (
        "DELETE FROM audit WHERE number = 5; UPDATE audit SET number = -number WHERE number > 5;"
        "UPDATE audit SET number = -number - 1 WHERE number < 0", 5,
    ),
    "row inserted": (
        "UPDATE audit SET number = -number WHERE number > 4; UPDATE audit SET number = 1 - number WHERE number < 0;"
        f"INSERT INTO audit SELECT 5, {COPIED} FROM audit WHERE number = 4", 5,
    ),
    "row appended": (
        f"INSERT INTO audit SELECT {ACTS + 1}, {COPIED} FROM audit WHERE number = {ACTS}", ACTS + 1,
    ),
    "row before the first": (
        f"INSERT INTO audit SELECT 0, {COPIED} FROM audit WHERE number = 1", 1,
    ),
    "two rows swapped": (
        "UPDATE audit SET number = -1 WHERE number = 5; UPDATE audit SET number = 5 WHERE number = 6;"
        "UPDATE audit SET number = 6 WHERE number = -1", 5,
    ),
    "all turned round": (
        f"UPDATE audit SET number = -number; UPDATE audit SET number = {ACTS + 1} + number WHERE number < 0", 1,
    ),
}  # fmt: skip


def tamper(folder: Path, statements: str) -> None:
    with closing(sqlite3.connect(folder / "gateway.db", isolation_level=None)) as database:
        database.executescript(statements)


@pytest.fixture
async def stopped(tmp_path: Path) -> Path:
    async with keyed(tmp_path) as gateway:
        await acted(gateway)
    return tmp_path


@pytest.mark.parametrize("how", TAMPERED)
async def test_what_is_done_to_the_file_is_found_at_the_first_row_that_does_not_fit(stopped: Path, how: str) -> None:
    statements, first = TAMPERED[how]
    tamper(stopped, statements)
    async with keyed(stopped) as gateway:
        done = await gateway.command("audit", "verify")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"the log was tampered with: row {first}: " in done.stderr
        await gateway.create("later")
        assert (await gateway.command("audit", "verify")).returncode == 1, "what comes later does not mend it"


async def test_rows_missing_at_the_end_are_found_by_whoever_has_kept_the_head(stopped: Path) -> None:
    async with keyed(stopped) as gateway:
        head = json.loads((await gateway.command("audit", "verify", "--json")).stdout)["head"]
    tamper(stopped, f"DELETE FROM audit WHERE number = {ACTS}")
    async with keyed(stopped) as gateway:
        assert (await gateway.command("audit", "verify")).returncode == 0, "the chain alone cannot show it"
        await gateway.create("later")
        done = await gateway.command("audit", "verify", "--head", head)
    assert done.returncode == 1
    assert "rows are missing" in done.stderr


def test_a_log_of_many_rows_is_found_out_wherever_one_bit_of_it_is_turned() -> None:
    rows = _rows()
    for number, row in enumerate(rows):
        for changed in (Row(**{**_fields(row), "who": "x"}), Row(**{**_fields(row), "at": row.at ^ 1})):
            with pytest.raises(Broken, match=f"row {number + 1}:"):
                list(verified([*rows[:number], changed, *rows[number + 1 :]]))


def _fields(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.__slots__}


def _rows() -> list[Row]:
    rows: list[Row] = []
    for number in range(40):
        before = rows[-1].hash if rows else GENESIS
        rows.append(sealed(Act(Actor("admin", "::1"), "key.create", str(number)), number + 1, 1000 + number, before))
    return rows
