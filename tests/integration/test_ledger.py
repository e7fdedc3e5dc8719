"""What is handed to the ledger is in its file, once and right, and what is read out of it is what is there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from gateway.controlplane.ledger import Ledger, ledger_url
from gateway.controlplane.ledgertables import METADATA
from gateway.controlplane.usage import Usage
from gateway.domain.entry import BY, Entry
from gateway.domain.errors import InvalidRequest, StorageError
from tests.integration.ledger_rows import asked, rows, summed
from tests.patience import LATE
from tests.tiers import repeated


def entry(number: int, **changes: Any) -> Entry:
    return replace(
        Entry(
            request_id=f"req_{number:032x}", started=1_795_000_000_000_000 + number, endpoint="/v1/chat/completions",
            model="m", adapter="", upstream="up", key="tester", key_name="Tester", team="", user="", task="",
            attempts=1, status=200, reason="completed", prompt=3, completion=5, cached=1, reasoning=2,
            estimated=False, cost=7, price="in=1 out=0.8", first_byte=1000, duration=2000,
        ),
        **changes,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.ledger.db"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Ledger]:
    ledger = Ledger(f"sqlite:///{path}")
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.close()


def show(ledger: Ledger, one: Entry) -> bool:
    ledger.opened(one.request_id, lambda: one)
    return ledger.shown(one.request_id)


async def written_down(ledger: Ledger) -> None:
    """Returns when all that was handed over is in the file."""
    await ledger.ask(lambda connection: None)


def written(found: Entry, row: dict[str, Any]) -> bool:
    return all(getattr(found, name) == row[name] for name in Entry.__slots__)


async def killed(path: Path, *entries: Entry) -> None:
    """Leaves these running, as a gateway does that is killed: it never closes its file."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _KILLED, str(path), repr(entries), stdout=asyncio.subprocess.PIPE
    )
    await process.communicate()
    assert process.returncode == -9


_KILLED = """
import asyncio, os, signal, sys
from gateway.controlplane.ledger import Ledger
from gateway.domain.entry import Entry

async def main():
    ledger = Ledger(f"sqlite:///{sys.argv[1]}")
    await ledger.start()
    for entry in eval(sys.argv[2]):
        ledger.opened(entry.request_id, lambda entry=entry: entry)
        ledger.shown(entry.request_id)
        if entry.completion:
            ledger.checkpoint(entry.request_id, entry.completion)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_it_lies_beside_the_storage() -> None:
    assert ledger_url("sqlite:///var/gateway.db") == "sqlite:///var/gateway.ledger.db"
    assert ledger_url("sqlite:////a.b/storage") == "sqlite:////a.b/storage.ledger.db"


async def test_a_request_is_there_while_it_runs_and_once_when_it_has_ended(path: Path) -> None:
    async with opened(path) as ledger:
        running = entry(1, reason="", completion=0, status=0)
        assert show(ledger, running)
        await written_down(ledger)
        assert [row["request_id"] for row in asked(path, "SELECT * FROM open_requests")] == [running.request_id]
        ledger.checkpoint(running.request_id, 4)
        assert show(ledger, entry(2))
        await written_down(ledger)
        assert asked(path, "SELECT completion FROM open_requests ORDER BY request_id")[0] == {"completion": 4}
        ledger.opened(running.request_id, lambda: replace(running, upstream="another"))
        assert ledger.settled(entry(1))
        assert ledger.settled(entry(2, first_byte=None))
    found = rows(path)
    assert [written(*both) for both in zip((entry(1), entry(2, first_byte=None)), found, strict=True)] == [True, True]


async def test_everything_that_was_handed_over_is_written_when_it_closes(path: Path) -> None:
    rng = Random(1)
    async with opened(path) as ledger:
        for number in range(3000):
            one = entry(number, key=f"k{rng.randrange(9)}", completion=rng.randrange(9), cost=rng.randrange(9))
            if rng.random() < 0.5:
                ledger.opened(one.request_id, partial(entry, number))
            if rng.random() < 0.1:
                ledger.shown(one.request_id)
            if rng.random() < 0.01:
                await written_down(ledger)
            ledger.settled(one)
    found = rows(path)
    assert [row["request_id"] for row in found] == [entry(number).request_id for number in range(3000)]
    assert len(summed(found)) == 9


async def test_nothing_is_left_beside_a_ledger_that_was_closed(path: Path) -> None:
    async with opened(path) as ledger:
        ledger.settled(entry(1))
        await written_down(ledger)
    assert [file.name for file in path.parent.iterdir() if "journal" in file.name] == []


async def test_who_asks_may_be_cancelled_and_loses_nothing(path: Path) -> None:
    async with opened(path) as ledger:
        for number in range(50):
            ledger.settled(entry(number))
            asking = asyncio.ensure_future(written_down(ledger))
            await asyncio.sleep(0)
            asking.cancel()
    assert len(rows(path)) == 50


async def test_the_schema_is_what_the_code_takes_it_for(path: Path) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"version_table": "schema_version", "compare_type": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))

    async with opened(path) as ledger:
        assert await ledger.ask(differences) == []


async def test_a_second_gateway_does_not_get_it(path: Path) -> None:
    async with opened(path):
        with pytest.raises(StorageError, match="is in use by another gateway"):
            await Ledger(f"sqlite:///{path}").start()


async def test_what_ran_when_the_gateway_was_killed_is_settled_with_what_was_noted_of_it(path: Path) -> None:
    seen = entry(1, reason="", completion=4, prompt=3, cost=0, price="in=1000000 out=0.5", status=200)
    unseen = entry(2, reason="", completion=0, prompt=3, cost=0)
    await killed(path, seen, unseen)
    async with opened(path) as ledger:
        assert ledger.recovered == 2
    async with opened(path) as ledger:
        assert ledger.recovered == 0
    one, other = rows(path)
    assert (one["reason"], one["prompt"], one["completion"], one["cost"]) == ("gateway_crash", 3, 4, 3_000_002)
    assert (other["reason"], other["prompt"], other["completion"], other["cost"]) == ("gateway_crash", 0, 0, 0)


async def fill_the_disk(ledger: Ledger) -> None:
    """One row is in the file, and for the 199 that it is given then there is no room."""
    ledger.settled(entry(0))
    await ledger.ask(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1").all())
    for number in range(1, 200):
        assert ledger.settled(entry(number, user="u" * 500))


async def test_a_full_disk_is_told_loses_nothing_and_room_is_used_by_itself(path: Path) -> None:
    async with opened(path) as ledger:
        await fill_the_disk(ledger)
        await written_down(ledger)
        await until(lambda: ledger.trouble is not None)
        assert ledger.trouble is not None
        assert "the disk is full" in ledger.trouble.message
        assert ledger.depth >= 199
        await ledger.ask(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 100000").all())
        await until(lambda: ledger.trouble is None)
        assert ledger.settled(entry(999))
    assert len(rows(path)) == 201


async def test_what_is_in_the_journal_of_a_gateway_that_could_not_write_is_in_the_next_ones_ledger(path: Path) -> None:
    async with opened(path) as ledger:
        await fill_the_disk(ledger)
    assert len(asked(path, "SELECT seq FROM requests")) == 1
    async with opened(path):
        pass
    assert len(rows(path)) == 200


async def test_a_disk_that_does_not_keep_up_lets_nobody_in_until_it_does(path: Path) -> None:
    stands = threading.Event()
    async with opened(path) as ledger:
        waiting = asyncio.ensure_future(ledger.ask(lambda connection: stands.wait()))
        for number in range(100_001):
            assert ledger.settled(entry(number))
        await until(lambda: ledger.trouble is not None)
        assert ledger.trouble is not None
        assert "does not keep up" in ledger.trouble.message
        stands.set()
        await waiting
        await until(lambda: ledger.trouble is None)
    assert len(rows(path)) == 100_001


async def until(come: Callable[[], bool]) -> None:
    """The ledger's trouble has no event: a gateway looks at it with each request."""
    async with asyncio.timeout(LATE):
        while not come():
            await asyncio.sleep(0.01)


_FAILING_DISK = """
import asyncio, resource, sys
from gateway.controlplane.ledger import Ledger
from gateway.domain.entry import Entry

def room(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    ledger = Ledger(f"sqlite:///{sys.argv[1]}")
    await ledger.start()
    first, second, third = eval(sys.argv[2])
    ledger.settled(first)
    await ledger.ask(lambda connection: None)
    room(0)  # every write is an error from now on
    assert not ledger.settled(second)
    while "the disk fails" not in ledger.trouble.message:
        await ledger.ask(lambda connection: None)
    print(ledger.trouble.message)
    room(resource.RLIM_INFINITY)
    assert ledger.settled(third)
    await ledger.ask(lambda connection: None)
    print(ledger.trouble.message)
    await ledger.close()

asyncio.run(main())
"""


async def test_after_the_disk_has_failed_nothing_is_written_before_the_next_start(path: Path) -> None:
    command = [sys.executable, "-c", _FAILING_DISK, str(path), repr([entry(1), entry(2), entry(3)])]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    first, second = ended.stdout.splitlines()
    assert first == second
    assert "the disk fails" in first
    assert ended.stderr.count("not in the ledger") == 1, "what could be noted nowhere is told"
    assert [row["request_id"] for row in asked(path, "SELECT * FROM requests")] == [entry(1).request_id]
    async with opened(path):
        pass
    assert [row["request_id"] for row in rows(path)] == [entry(number).request_id for number in (1, 3)]


async def test_a_line_that_was_not_written_whole_is_left_out_and_no_other(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await killed(path, entry(1, reason="", completion=0), entry(2, reason="", completion=0))
    (journal,) = [file for file in path.parent.iterdir() if "journal" in file.name]
    first, second, _ = journal.read_bytes().split(b"\n")
    journal.write_bytes(first + b"\n" + second[:-9])
    async with opened(path) as ledger:
        assert ledger.recovered == 1
        assert caplog.text.count("cannot be read") == 0, "the last one is to be expected"
    journal.write_bytes(second[:50] + bytes(30) + b"\n" + second + b"\n")  # as after a power cut
    async with opened(path) as ledger:
        assert ledger.recovered == 1
        assert "1 lines cannot be read" in caplog.text
    assert [row["request_id"] for row in rows(path)] == [entry(1).request_id, entry(2).request_id]


async def test_a_journal_counts_once_however_often_it_is_found(path: Path) -> None:
    """Journals are removed after the transaction; the gateway may be killed, or the power fail, in between."""
    await killed(path, entry(1, reason="", completion=4))
    (journal,) = [file for file in path.parent.iterdir() if "journal" in file.name]
    text = journal.read_bytes() + b'{"settled":' + orjson.dumps(entry(2)) + b"}\n"
    for _ in range(3):
        journal.write_bytes(text)
        async with opened(path):
            pass
        assert not journal.exists()
    found = rows(path)
    assert {row["request_id"]: row["reason"] for row in found} == {
        entry(1).request_id: "gateway_crash", entry(2).request_id: "completed",
    }  # fmt: skip


async def test_reports_are_what_the_rows_add_up_to_by_whatever_is_asked_for(path: Path) -> None:
    rng = Random(2)
    async with opened(path) as ledger:
        usage = Usage(ledger, None)
        made = [
            entry(
                number, key=rng.choice("ab"), team=rng.choice("xy"), user=rng.choice("uv"), model=rng.choice("mn"),
                adapter=rng.choice(("", "bot@1")), upstream=rng.choice("pq"), cost=rng.randrange(99),
            )
            for number in range(400)
        ]  # fmt: skip
        for one in made:
            ledger.settled(one)
        for key in (None, "a", "nobody"):
            mine = [one for one in made if key in (None, one.key)]
            for by in BY:
                report = await usage.summary(by, None, None, key)
                for total, part in (
                    ("requests", lambda one: 1), ("prompt_tokens", lambda one: one.prompt),
                    ("completion_tokens", lambda one: one.completion), ("cached_tokens", lambda one: one.cached),
                    ("reasoning_tokens", lambda one: one.reasoning), ("cost_micros", lambda one: one.cost),
                ):  # fmt: skip
                    wanted: dict[str, int] = {}
                    for one in mine:
                        value = rows_day(path) if by == "day" else getattr(one, by)
                        wanted[value] = wanted.get(value, 0) + part(one)
                    assert {row[by]: row[total] for row in report} == wanted, (by, key, total)
        named = await usage.summary("key", None, None)
        assert {row["name"] for row in named} == {"Tester"}
        assert [row["cost_micros"] for row in named] == sorted((row["cost_micros"] for row in named), reverse=True)


def rows_day(path: Path) -> str:
    (day,) = asked(path, "SELECT DISTINCT day FROM usage_days")
    return (date(1970, 1, 1) + timedelta(day["day"])).isoformat()


async def test_both_days_of_a_window_are_included_and_nothing_else(path: Path) -> None:
    async with opened(path) as ledger:
        for number in range(6):
            ledger.settled(entry(number))
        spread = "UPDATE requests SET seq = ((20000 + (seq & 4294967295)) << 32) + 1"
        await ledger.ask(lambda connection: connection.exec_driver_sql(spread))
        await ledger.ask(lambda connection: connection.exec_driver_sql("DELETE FROM usage_days"))
        copied = (
            "INSERT INTO usage_days SELECT seq >> 32, key, team, user, model, adapter, upstream, key_name, count(*), "
            "sum(prompt), sum(completion), sum(cached), sum(reasoning), sum(cost) FROM requests GROUP BY 1,2,3,4,5,6,7"
        )
        await ledger.ask(lambda connection: connection.exec_driver_sql(copied))
        usage = Usage(ledger, None)
        days = [(date(1970, 1, 1) + timedelta(20001 + number)).isoformat() for number in range(6)]
        since, until = date.fromisoformat(days[1]), date.fromisoformat(days[3])
        assert [row["day"] for row in await usage.summary("day", None, None)] == days
        assert [row["day"] for row in await usage.summary("day", since, until)] == days[1:4]
        assert [row["day"] for row in (await usage.requests(since, until, None, 100))[0]] == days[1:4]
        assert [row["day"] for row in (await usage.requests(since, None, None, 100))[0]] == days[1:]
        assert await usage.summary("day", until, since) == []


async def test_who_pages_gets_every_row_once_also_those_that_are_written_meanwhile(path: Path) -> None:
    rng = Random(3)
    running = [entry(number) for number in range(300)]
    async with opened(path) as ledger:
        usage = Usage(ledger, None)
        for one in running:
            ledger.opened(one.request_id, partial(entry, int(one.request_id[4:], 16)))
        rng.shuffle(running)
        got: list[str] = []
        after, more = None, True
        while running or more:
            for one in [running.pop() for _ in range(min(len(running), rng.randrange(40)))]:
                ledger.settled(one)
            page, more = await usage.requests(None, None, after, rng.randrange(1, 50))
            got += [row["request_id"] for row in page]
            after = got[-1] if got else None
        assert got == [row["request_id"] for row in rows(path)]
        assert len(got) == 300
        with pytest.raises(InvalidRequest):
            await usage.requests(None, None, "req_nobody", 5)


@repeated(20_000, 1_000_000)
async def test_many_rows_make_neither_the_start_nor_a_report_slow(path: Path, repetitions: int) -> None:
    async with opened(path) as ledger:
        await ledger.ask(lambda connection: _fill(connection, repetitions))
    began = time.monotonic()
    async with opened(path) as ledger:
        start = time.monotonic() - began
        usage = Usage(ledger, None)
        began = time.monotonic()
        days = await usage.summary("day", None, None)
        report = time.monotonic() - began
        began = time.monotonic()
        page, _ = await usage.requests(date.fromisoformat(days[5]["day"]), None, None, 1000)
        paged = time.monotonic() - began
        began = time.monotonic()
        ledger.settled(entry(10**9))
        await written_down(ledger)
        settled = time.monotonic() - began
    assert sum(row["requests"] for row in days) == repetitions
    assert len(page) == 1000
    print(f"start {start:.3f} s, report {report:.3f} s, page {paged:.3f} s, settled {settled:.4f} s")  # noqa: T201
    assert start < 3
    assert report < 1
    assert paged < 1
    assert settled < 1


def _fill(connection: Connection, count: int) -> None:
    """Rows of 30 days and of as many keys as a large installation has."""
    keys = min(10_000, count // 30)
    names = ("seq", *Entry.__slots__)
    insert = f"INSERT INTO requests ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    made = (entry(number, key=f"k{number % keys}") for number in range(count))
    values = (
        ((20_000 + 30 * number // count << 32) + number + 1, *(getattr(one, name) for name in Entry.__slots__))
        for number, one in enumerate(made)
    )
    connection.connection.driver_connection.executemany(insert, values)
