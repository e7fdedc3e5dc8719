"""Several gateways with one PostgreSQL: what is made on one counts on all, and none of them needs it to answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.controlplane.audit import AuditLog
from gateway.controlplane.keyrecords import row_of
from gateway.controlplane.keys import KeyRecord, configured, revoked
from gateway.controlplane.maindb import MainDatabase
from gateway.controlplane.sharedaudit import SharedAudit
from gateway.controlplane.sharedkeys import SharedKeys
from gateway.controlplane.storage import Storage
from gateway.controlplane.tables import KEYS
from gateway.domain.audit import Act, Actor, Row, verified
from gateway.domain.errors import Conflict, StorageAway
from gateway.domain.keys import RANDOM_BYTES, make
from tests.gateway import AUTH
from tests.integration.keyed import ENDLESS, Keyed, chat, keyed, rest_of
from tests.integration.outbox import main_database
from tests.patience import LATE
from tests.postgres import PASSWORD, Server
from tests.tiers import repeated

PEPPER = "8c1f0b7d3e5a49627f08d1c4b6e2a953"
_ACROSS = 5.0  # seconds until a change counts on all gateways, and until all is well after an outage
BY = Actor("admin", "127.0.0.1")


@asynccontextmanager
async def replica(folder: Path, url: str, **scripts: Any) -> AsyncIterator[Keyed]:
    """A gateway of its own folder, on that database."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    settings = {
        "auth": {**AUTH, "pepper": PEPPER},
        "storage": {"url": url, "local": str(folder / "gateway.db")},
    }
    async with keyed(folder, scripts or None, **settings) as gateway:
        yield gateway


async def until(true: Callable[[], Any], seconds: float = _ACROSS + LATE) -> float:
    """Returns how long it took.  Raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.02)  # another gateway, or another process: there is no event to wait for
    return time.monotonic() - began


async def state(gateway: Keyed) -> str:
    return str((await gateway.client.get("/readyz")).json()["status"])


async def is_ready(gateway: Keyed) -> bool:
    return await state(gateway) == "ready"


async def is_degraded(gateway: Keyed) -> bool:
    return await state(gateway) == "degraded"


async def knows(gateway: Keyed, id: str) -> bool:
    return id in await gateway.rows()


async def refusal(gateway: Keyed, key: str) -> tuple[int, str]:
    answer = await gateway.get(key)
    return answer.status_code, answer.json()["error"]["code"]


STRANGER = make(bytes(range(RANDOM_BYTES))).reveal()  # well-formed, and nobody's


async def test_a_key_counts_on_every_gateway_and_is_revoked_on_every_one_with_what_runs(
    postgres: Server, tmp_path: Path
) -> None:
    url = postgres.database()
    async with replica(tmp_path / "a", url) as first, replica(tmp_path / "b", url, m=ENDLESS) as second:
        await until(lambda: is_ready(first))
        await until(lambda: is_ready(second))
        made = await first.create("anna", team="sales")
        key = made["key"]
        assert await first.lets_in(key), "at once where it was made"
        assert await until(lambda: knows(second, made["id"])) < _ACROSS
        assert await second.lets_in(key)
        assert (await second.rows())[made["id"]]["team"] == "sales"
        async with second.streaming(key) as stream:
            began = time.monotonic()
            await first.revoke("anna")
            assert not await first.lets_in(key)
            reply = await rest_of(stream)
            assert time.monotonic() - began < _ACROSS
        assert b"The API key was revoked." in reply.body
        assert await refusal(second, key) == (401, "invalid_api_key")
        assert (await second.rows())[made["id"]]["state"] == "revoked"
        acts = [(row["act"], row["target"]) for row in await second.audit()]
        assert acts == [("key.create", made["id"]), ("key.revoke", made["id"])]


async def test_a_name_is_one_keys_on_all_gateways(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    async with replica(tmp_path / "a", url) as first, replica(tmp_path / "b", url) as second:
        await until(lambda: is_ready(first))
        await until(lambda: is_ready(second))
        made = await asyncio.gather(*(gateway.client.post("/admin/v1/keys", json={"name": "anna"})
                                      for gateway in (first, second) * 4))  # fmt: skip
        assert sorted(answer.status_code for answer in made) == [201] + [409] * 7


class Gate:
    """The way to the server, which can be blocked: packets get lost, and nobody hears of it."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._ways: set[asyncio.Task[None]] = set()

    def block(self) -> None:
        self._open.clear()

    def unblock(self) -> None:
        """What was under way is lost."""
        for way in self._ways:
            way.cancel()
        self._open.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = asyncio.current_task()
        assert way is not None
        self._ways.add(way)
        try:
            await self._open.wait()
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(reader, there_writer))
                    group.create_task(self._carry(there_reader, writer))
            finally:
                there_writer.transport.abort()
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._ways.discard(way)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
        raise ConnectionResetError


@asynccontextmanager
async def gate(target: int) -> AsyncIterator[Gate]:
    way = Gate(target)
    server = await asyncio.start_server(way.connected, "127.0.0.1", 0)
    way.port = server.sockets[0].getsockname()[1]
    async with server:
        yield way
        way.unblock()


HARMS: Mapping[str, tuple[Callable[[Server], None], Callable[[Server], None]]] = {
    "frozen": (Server.freeze, Server.thaw),
    "killed": (Server.kill, Server.start),
}


@pytest.mark.parametrize("harm", [*HARMS, pytest.param("blocked", marks=pytest.mark.soak)])
@repeated(1, 60)
@pytest.mark.timeout(300)
async def test_known_keys_go_on_while_the_database_is_away_and_all_is_well_when_it_is_back(
    postgres: Server, tmp_path: Path, harm: str, repetitions: int
) -> None:
    """`repetitions`: seconds, beyond those in which it is seen that it is away."""
    async with gate(postgres.port) as way:
        url = postgres.database().replace(f":{postgres.port}/", f":{way.port}/")
        async with replica(tmp_path, url) as gateway:
            await until(lambda: is_ready(gateway))
            key = (await gateway.create("anna"))["key"]
            assert await refusal(gateway, STRANGER) == (401, "invalid_api_key")
            async with using(gateway, key) as answers:
                await asyncio.to_thread(HARMS[harm][0], postgres) if harm in HARMS else way.block()
                await until(lambda: is_degraded(gateway))
                assert await refusal(gateway, STRANGER) == (503, "storage_away")
                assert await refusal(gateway, STRANGER[:-1] + "0") == (401, "invalid_api_key")
                told = (await gateway.client.post("/admin/v1/keys", json={"name": "bob"})).json()["error"]
                assert told["code"] == "storage_away"
                assert "The main database postgresql://gateway:***@" in told["message"]
                assert await gateway.gateway.metric("gateway_database_state", state="degraded") == 1
                await asyncio.sleep(repetitions)
                await asyncio.to_thread(HARMS[harm][1], postgres) if harm in HARMS else way.unblock()
                assert await until(lambda: is_ready(gateway)) < _ACROSS
                await gateway.create("bob")
                assert await until(lambda: is_refused(gateway, STRANGER)) < _ACROSS
            assert set(answers) == {200}
            assert len(answers) > 10
            assert await gateway.gateway.metric("gateway_database_state", state="ok") == 1


async def is_refused(gateway: Keyed, key: str) -> bool:
    return (await gateway.get(key)).status_code == 401


@asynccontextmanager
async def using(gateway: Keyed, key: str) -> AsyncIterator[list[int]]:
    """Somebody asks all the time; what the answers are."""
    answers: list[int] = []

    async def ask() -> None:
        while True:
            answers.append((await gateway.post(key, chat())).status_code)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(ask())
    try:
        yield answers
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


async def test_a_gateway_that_starts_without_its_database_knows_what_it_knew(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    async with replica(tmp_path, url) as gateway:
        await until(lambda: is_ready(gateway))
        key, gone = (await gateway.create("anna"))["key"], (await gateway.create("bob"))["key"]
        await gateway.revoke("bob")
    postgres.kill()
    async with replica(tmp_path, url) as gateway:
        assert await state(gateway) == "degraded"
        assert await gateway.lets_in(key)
        assert await refusal(gateway, gone) == (503, "storage_away"), "only the database could tell"
        assert (await gateway.client.post("/admin/v1/keys", json={"name": "carol"})).status_code == 503
        assert (await gateway.client.get("/admin/v1/audit")).status_code == 503
        postgres.start()
        assert await until(lambda: is_ready(gateway)) < _ACROSS
        assert await until(lambda: is_refused(gateway, gone)) < _ACROSS
        await gateway.create("carol")


async def test_what_is_shown_of_the_configuration_holds_no_password(postgres: Server, tmp_path: Path) -> None:
    async with replica(tmp_path, postgres.database()) as gateway:
        page = await gateway.client.get("/admin/v1/config")
        assert PASSWORD not in page.text
        assert "gateway:***@127.0.0.1" in page.text


class Part:
    """A gateway's keys alone: what `learn` was told is in `force`."""

    def __init__(self, storage: Storage, main: MainDatabase) -> None:
        self.storage = storage
        own = AuditLog()
        own.open(storage)
        self.audit = SharedAudit(main, own)
        self.keys = SharedKeys(main, storage, self.audit, tick=0.02)
        self.force: dict[str, KeyRecord] = {}

    async def learn(self, news: Callable[[], Mapping[str, KeyRecord | None]]) -> None:
        for id, record in news().items():
            if record is None:
                self.force.pop(id, None)
            else:
                self.force[id] = record

    async def save(self, record: KeyRecord, *, new: bool = False) -> None:
        await self.keys.save(record, Act(BY, "key.configure", record.id), new=new)
        self.force[record.id] = record

    async def stands(self, record: KeyRecord) -> bool:
        return self.force.get(record.id) == record


@asynccontextmanager
async def part(folder: Path, url: str) -> AsyncIterator[Part]:
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    storage = await Storage.open(f"sqlite:///{folder}/gateway.db")
    try:
        async with main_database(url) as main:
            await main.reached()
            one = Part(storage, main)
            one.force = await one.keys.load()
            following = asyncio.create_task(one.keys.follow(one.learn, lambda: None))
            async with asyncio.timeout(LATE):
                while not one.keys.complete and not following.done():
                    await asyncio.sleep(0.01)
            try:
                yield one
            finally:
                following.cancel()
                await asyncio.wait({following})
    finally:
        await storage.close()


def a_key(name: str) -> KeyRecord:
    return KeyRecord(f"id-{name}", name, name.encode().ljust(32, b"."), "pepper", 1)


async def test_whoever_changes_a_key_that_another_gateway_has_changed_is_told_so(
    postgres: Server, tmp_path: Path
) -> None:
    url, record = postgres.database(), a_key("anna")
    async with part(tmp_path / "a", url) as first, part(tmp_path / "b", url) as second:
        await first.save(record, new=True)
        await until(lambda: second.stands(record))
        ended = revoked(record, now=5)
        saves = first.save(ended), second.save(configured(record, team="sales"))
        outcomes = await asyncio.gather(*saves, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(Conflict) == 1
        winner = ended if outcomes[0] is None else configured(record, team="sales")
        loser = second if winner is ended else first
        await until(lambda: loser.stands(winner))
        rows = await first.audit.rows(0, 100)
        assert [row.number for row in verified(rows)] == [1, 2], "what was refused is not in the log"


async def test_the_log_of_many_gateways_is_one_chain_without_a_gap_and_nothing_twice(
    postgres: Server, tmp_path: Path
) -> None:
    url = postgres.database()
    async with part(tmp_path / "a", url) as first, part(tmp_path / "b", url) as second:
        await asyncio.gather(*(
            one.audit.note(Act(BY, "adapter.promote", f"{name}-{number}"))
            for number in range(30) for name, one in (("a", first), ("b", second))
        ))  # fmt: skip
        rows = await first.audit.rows(0, 1000)
        assert len(list(verified(rows))) == 60
        assert len({row.target for row in rows}) == 60
    async with part(tmp_path / "a", url) as first:
        await first.audit.copy()
        assert await first.audit.rows(0, 1000) == rows


async def test_an_act_on_a_gateways_own_things_is_noted_while_the_database_is_away(
    postgres: Server, tmp_path: Path
) -> None:
    url = postgres.database()
    async with part(tmp_path, url) as one:
        await one.audit.note(Act(BY, "adapter.add", "before"))
        postgres.kill()
        for number in range(3):
            await one.audit.note(Act(BY, "adapter.promote", str(number)))
        postgres.start()

        async def copied() -> list[Row]:
            await one.keys._main.reached()
            await one.audit.copy()
            return await one.audit.rows(0, 10)

        with contextlib.suppress(StorageAway):  # the loss is seen by the first who asks
            await copied()
        rows = await copied()
        assert [row.target for row in verified(rows)] == ["before", "0", "1", "2"]


async def test_the_keys_of_a_gateway_come_along_into_an_empty_database_and_only_there(
    postgres: Server, tmp_path: Path
) -> None:
    url, keys = postgres.database(), [a_key(f"key-{number}") for number in range(1100)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        storage = await Storage.open(f"sqlite:///{tmp_path}/{folder}/gateway.db")
        await storage.call(kept, storage, keys if folder == "a" else [a_key("stranger")])
        await storage.close()
    async with part(tmp_path / "a", url) as first:
        assert len(first.force) == 1100
        async with part(tmp_path / "b", url) as second:
            assert second.force == first.force
            assert await second.keys.load() == first.force
        assert [row.act for row in verified(await first.audit.rows(0, 10))] == ["keys.import"]


def kept(storage: Storage, keys: list[KeyRecord]) -> None:
    with storage.begin() as connection:
        connection.execute(KEYS.insert(), [row_of(record) for record in keys])


async def test_a_database_that_was_set_back_is_followed(postgres: Server, tmp_path: Path) -> None:
    url, record = postgres.database(), a_key("anna")
    async with part(tmp_path, url) as one:
        await one.save(record, new=True)
        await one.save(configured(record, team="late"))
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE lora_gateway.api_keys SET team = '', change = 1")
        await until(lambda: one.stands(record))


async def test_a_key_that_is_not_understood_here_lets_nobody_in_and_stops_no_other(
    postgres: Server, tmp_path: Path
) -> None:
    url, record, other = postgres.database(), a_key("anna"), a_key("bob")
    async with part(tmp_path, url) as one:
        await one.save(record, new=True)
        await until(lambda: one.stands(record))
        with psycopg.connect(url) as connection:
            connection.execute("""UPDATE lora_gateway.api_keys SET allow = '["of-tomorrow"]', change = 99""")
        async with asyncio.timeout(LATE):
            while one.force:
                await asyncio.sleep(0.01)
        with psycopg.connect(url) as connection:
            connection.execute("SELECT setval('lora_gateway.changes', 100)")
        await one.save(other, new=True)
        await until(lambda: one.stands(other))
        assert await one.keys.load() == {other.id: other}
