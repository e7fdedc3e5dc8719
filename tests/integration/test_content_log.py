"""Prompts and answers are written down for the keys that have it that way, and for no other; who asks is told so."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, select

from gateway.controlplane.keyrecords import row_of
from gateway.controlplane.maintables import KEYS as SHARED_KEYS
from gateway.controlplane.problems import ConfigError
from gateway.domain.content import Content
from gateway.telemetry.contentlog import ContentLog
from tests import wire
from tests.fakes import faults
from tests.fakes.openai_upstream import Script
from tests.gateway import ADMIN_KEY, AUTH, CLIENT_KEY
from tests.integration.keyed import Keyed, bearer, keyed
from tests.integration.outbox import main_database
from tests.integration.test_shared_keys import PEPPER, a_key, until
from tests.patience import LATE
from tests.postgres import Server

PROMPT = "the canary sings 4417-quokka: Grüße, 你好"
LOGGED = "sk-logged-77c1a2f09be35d48"
HEADER = "x-gateway-content-logged"
SCRIPTS = {
    "m": Script(pieces=("Grü", "ße", " 你", "好")),
    "slow": Script(pieces=("a", "b", "c", "d"), on_demand=True),
    "cut": Script(pieces=("a", "b", "c", "d"), after=2, fault=faults.cut),
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip


def both(**more: Any) -> dict[str, Any]:
    """An administrator, a key whose content is logged, and one whose content is not."""
    return {
        "admin_key": ADMIN_KEY,
        "keys": [
            {"name": "tester", "key": CLIENT_KEY},
            {"name": "logged", "key": LOGGED, "log_content": True, **more},
        ],
    }


@asynccontextmanager
async def logging_gateway(folder: Path, path: Path | None = None, **settings: Any) -> AsyncIterator[Keyed]:
    settings = {"auth": both(), "log": {"content": str(path or folder / "content.jsonl")}, **settings}
    async with keyed(folder, SCRIPTS, **settings) as gateway:
        yield gateway


def chat(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}


def written(folder: Path, name: str = "content.jsonl") -> list[dict[str, Any]]:
    """The lines; all of them when the gateway has ended."""
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def files_with(folder: Path, text: bytes) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()}


async def lines(folder: Path, count: int) -> list[dict[str, Any]]:
    async def there() -> bool:
        return len(written(folder)) >= count

    await until(there)
    return written(folder)


async def ask(gateway: Keyed, body: Any, path: str = "/v1/chat/completions", key: str = LOGGED) -> wire.Reply:
    return await wire.post(gateway.gateway.url, path, body, [("authorization", f"Bearer {key}")])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_line_has_what_was_asked_and_what_was_answered(tmp_path: Path, stream: bool, n: int) -> None:
    body = chat(stream=stream, n=n, temperature=0.5, tools=[], metadata={"mine": "1"})
    async with logging_gateway(tmp_path) as gateway:
        reply = await ask(gateway, body)
    (line,) = written(tmp_path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "request_id": reply.header("x-request-id"), "key": "logged", "key_name": "logged", "user": "", "team": "",
        "endpoint": "/v1/chat/completions", "model": "m", "adapter": "", "status": 200, "reason": "completed",
        "request": body,
        "answer": {"choices": [
            {"index": index, "content": "Grüße 你好", "finish_reason": "stop"} for index in range(n)
        ]},
        "truncated": False,
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_are_whole(tmp_path: Path, stream: bool) -> None:
    async with logging_gateway(tmp_path) as gateway:
        await ask(gateway, chat(stream=stream, tools=[TOOL], tool_choice="required"))
    (line,) = written(tmp_path)
    (choice,) = line["answer"]["choices"]
    (call,) = choice["tool_calls"]
    assert (call["name"], choice["finish_reason"]) == ("weather", "tool_calls")
    assert call["id"]
    assert list(json.loads(call["arguments"])) == ["city"]


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_have_their_text(tmp_path: Path, stream: bool) -> None:
    async with logging_gateway(tmp_path) as gateway:
        await ask(gateway, {"model": "m", "prompt": PROMPT, "stream": stream}, "/v1/completions")
    (line,) = written(tmp_path)
    assert line["request"]["prompt"] == PROMPT
    assert line["answer"] == {"choices": [{"index": 0, "text": "Grüße 你好", "finish_reason": "stop"}]}


async def test_embeddings_have_their_input_and_no_vectors(tmp_path: Path) -> None:
    async with logging_gateway(tmp_path) as gateway:
        assert (await ask(gateway, {"model": "m", "input": [PROMPT]}, "/v1/embeddings")).status == 200
    (line,) = written(tmp_path)
    assert (line["request"]["input"], line["answer"], line["status"]) == ([PROMPT], None, 200)


async def test_who_leaves_in_the_middle_has_a_line_with_what_they_got(tmp_path: Path) -> None:
    async with logging_gateway(tmp_path) as gateway, wire.connected(gateway.gateway.url) as client:
        await client.post("/v1/chat/completions", chat("slow", stream=True), list(bearer(LOGGED).items()))
        async with asyncio.timeout(LATE):
            while not gateway.upstream.ledger:
                await asyncio.sleep(0.01)  # it is asked when the request is there
            for _ in range(2):
                gateway.upstream.ledger[0].wanted.release()
            await client.head()
            got = b""
            while b'"b"' not in got:
                got += await client.chunk() or b""
        client.reset()
        (line,) = await lines(tmp_path, 1)
    assert (line["reason"], line["answer"]) == ("client_cancel", {"choices": [{"index": 0, "content": "ab"}]})
    assert line["request"]["messages"][0]["content"] == PROMPT


async def test_an_answer_that_breaks_off_has_a_line_with_what_there_was_and_the_error(tmp_path: Path) -> None:
    async with logging_gateway(tmp_path) as gateway:
        reply = await ask(gateway, chat("cut", stream=True))
    (line,) = written(tmp_path)
    assert line["reason"] == "upstream_cut"
    assert line["answer"] == {"choices": [{"index": 0, "content": "ab"}], "error": reply.failure}
    assert reply.header(HEADER) == "true"


@pytest.mark.parametrize(
    ("body", "status", "reason", "kept"),
    [
        (chat("nothing"), 404, "refused", True), (chat(n=0), 400, "refused", True),
        (chat(chat_template="x"), 403, "auth", True), (b"{not json", 400, "refused", False),
        (b'{"model": "m", "model": "m"}', 400, "refused", False),
    ],
    ids=["model", "parameter", "right", "json", "twice"],
)  # fmt: skip
async def test_a_refused_request_has_a_line_with_the_refusal(
    tmp_path: Path, body: Any, status: int, reason: str, kept: bool
) -> None:
    async with logging_gateway(tmp_path) as gateway:
        reply = await ask(gateway, body)
    assert (reply.status, reply.header(HEADER)) == (status, "true")
    (line,) = written(tmp_path)
    assert line["request"] == (body if kept else None)
    assert (line["status"], line["reason"], line["answer"]) == (status, reason, {"error": reply.error})


async def test_each_answer_says_so_and_those_of_other_keys_do_not(tmp_path: Path) -> None:
    auth = both(endpoints=["/v1/chat/completions"])
    async with logging_gateway(tmp_path, auth=auth) as gateway:
        url = gateway.gateway.url
        for stream in (False, True):
            assert (await ask(gateway, chat(stream=stream))).header(HEADER) == "true"
            assert (await ask(gateway, chat(stream=stream), key=CLIENT_KEY)).header(HEADER) is None
        for path, status in (
            ("/v1/models", 200),
            ("/v1/models/nothing", 404),
            ("/nothing", 404),
            ("/v1/usage/me", 200),
        ):
            for key, said in ((LOGGED, "true"), (CLIENT_KEY, None)):
                reply = await wire.get(url, path, [("authorization", f"Bearer {key}")])
                assert (reply.status, reply.header(HEADER)) == (status, said), path
        refused = await ask(gateway, {"model": "m", "input": "x"}, "/v1/embeddings")
        assert (refused.status, refused.header(HEADER)) == (403, "true")
        assert (await ask(gateway, chat(), key="sk-wrong-77c1a2f09be35d48")).header(HEADER) is None
    assert [line["key"] for line in written(tmp_path)] == ["logged", "logged"]


async def test_without_the_opt_in_nothing_is_written_whatever_a_client_sends(tmp_path: Path) -> None:
    async with logging_gateway(tmp_path) as gateway:
        for header in ((HEADER, "true"), ("x-gateway-log-content", "true")):
            for stream in (True, False):
                reply = await wire.post(
                    gateway.gateway.url, "/v1/chat/completions", chat(stream=stream, metadata={"log_content": "true"}),
                    [("authorization", f"Bearer {CLIENT_KEY}"), header],
                )  # fmt: skip
                assert (reply.status, reply.header(HEADER)) == (200, None)
        assert (await ask(gateway, chat(stream=True, log_content=True), key=CLIENT_KEY)).header(HEADER) is None
    assert files_with(tmp_path, b"4417-quokka") == set()
    assert (tmp_path / "content.jsonl").read_bytes() == b""


async def test_the_content_is_in_its_file_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with logging_gateway(tmp_path) as gateway:
        for model in ("m", "cut", "nothing"):
            await ask(gateway, chat(model, stream=True))
    assert len(written(tmp_path)) == 3
    assert "4417-quokka" not in caplog.text
    assert files_with(tmp_path, b"4417-quokka") == {"content.jsonl"}
    assert files_with(tmp_path, LOGGED.encode()) == {"gateway.yaml"}


async def test_the_file_is_the_gateways_alone_and_what_others_may_is_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "content.jsonl"
    async with logging_gateway(tmp_path, file) as gateway:
        await ask(gateway, chat())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    async with logging_gateway(tmp_path, file) as gateway:
        await ask(gateway, chat())
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert len(written(file.parent)) == 2


async def test_a_file_that_was_moved_away_is_followed_by_another(tmp_path: Path) -> None:
    async with logging_gateway(tmp_path) as gateway:
        first = await ask(gateway, chat())
        await lines(tmp_path, 1)
        (tmp_path / "content.jsonl").rename(tmp_path / "content.1")
        second = await ask(gateway, chat())
    for name, reply in (("content.1", first), ("content.jsonl", second)):
        assert [line["request_id"] for line in written(tmp_path, name)] == [reply.header("x-request-id")]


async def test_a_line_that_a_kill_left_torn_harms_no_other(tmp_path: Path) -> None:
    (tmp_path / "content.jsonl").write_text('{"request_id": "torn')
    async with logging_gateway(tmp_path) as gateway:
        await ask(gateway, chat())
    torn, line = (tmp_path / "content.jsonl").read_text().splitlines()
    assert torn == '{"request_id": "torn'
    assert json.loads(line)["status"] == 200


@pytest.mark.parametrize("place", ["full", "folder", "forbidden"])
async def test_a_file_that_cannot_be_written_costs_no_request_and_is_told_once(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a-file").touch()
    path = {"full": Path("/dev/full"), "folder": tmp_path, "forbidden": tmp_path / "a-file" / "content.jsonl"}[place]
    async with logging_gateway(tmp_path, path) as gateway:
        for stream in (True, False):
            reply = await ask(gateway, chat(stream=stream))
            assert (reply.status, reply.complete) == (200, True)

        async def counted() -> bool:
            return await gateway.gateway.metric("gateway_content_log_dropped_total") == 2

        await until(counted)
    told = [record for record in caplog.records if record.name == "gateway.content"]
    assert [record.levelname for record in told] == ["WARNING"]
    assert "cannot be written" in told[0].getMessage()


async def test_a_file_that_can_be_written_again_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "content.jsonl"
    path.mkdir()
    async with logging_gateway(tmp_path) as gateway:
        await ask(gateway, chat())

        async def dropped() -> bool:
            return await gateway.gateway.metric("gateway_content_log_dropped_total") == 1

        await until(dropped)
        path.rmdir()
        await ask(gateway, chat())
    assert len(written(tmp_path)) == 1
    assert "the content log is written again" in caplog.text


def content(number: int, text: str = "x") -> Content:
    answer = (json.dumps({"choices": [{"index": 0, "message": {"content": text}}]}).encode(),)
    size = len(answer[0])
    return Content(f"req_{number}", 0, "", "k", "k", "", "", "m", "", 200, "completed", {}, answer, True, size)


async def test_a_disk_that_hangs_holds_nobody_up_and_what_waits_for_it_is_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is a pipe that nobody reads."""
    path, dropped = tmp_path / "pipe", []
    os.mkfifo(path)
    log = ContentLog(path, lambda: dropped.append(1), most=1_000_000)
    log.start()
    for number in range(300):
        log.put(content(number, "x" * 9_000))
    assert 150 < len(dropped) < 300
    told = [record.getMessage() for record in caplog.records]
    assert told == ["the content log does not keep up, and requests are left out of it"]
    with path.open("rb", buffering=0) as reader:
        ending = asyncio.create_task(log.close())
        got = await asyncio.to_thread(read_lines, reader, 300 - len(dropped))
        await ending
    numbers = [int(json.loads(line)["request_id"].removeprefix("req_")) for line in got]
    assert (len(numbers), numbers) == (300 - len(dropped), sorted(numbers))


def read_lines(reader: Any, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\n") < count:
        data += reader.read(65_536)
    return data.splitlines()


async def test_a_key_made_at_run_time_is_logged_from_the_next_request_on_and_no_longer_than_it_is_set(
    tmp_path: Path,
) -> None:
    async with logging_gateway(tmp_path) as gateway:
        made = await gateway.create("anna")
        assert made["log_content"] is False
        expected = []
        for log in (None, True, False, True):
            if log is not None:
                page = await gateway.call("PATCH", f"keys/{made['id']}", {"log_content": log})
                assert page["log_content"] is log
            reply = await ask(gateway, chat(), key=made["key"])
            assert reply.header(HEADER) == ("true" if log else None)
            if log:
                expected.append(reply.header("x-request-id"))
        rows = [row for row in await gateway.audit() if row["act"] == "key.configure"]
        assert [json.loads(row["detail"]) for row in rows] == [{"log_content": log} for log in (True, False, True)]
        rotated = await gateway.rotate(made["id"])
        assert (await ask(gateway, chat(), key=rotated["key"])).header(HEADER) == "true"
    assert [line["request_id"] for line in written(tmp_path)][:2] == expected
    assert [line["key_name"] for line in written(tmp_path)] == ["anna"] * 3
    async with logging_gateway(tmp_path) as gateway:  # after a restart too
        assert (await ask(gateway, chat(), key=rotated["key"])).header(HEADER) == "true"


async def test_the_commands_set_and_show_it(tmp_path: Path) -> None:
    async with logging_gateway(tmp_path) as gateway:
        assert (await gateway.command("keys", "create", "anna", "--log-content")).returncode == 0
        assert (await gateway.call("GET", "keys/anna"))["log_content"] is True
        shown = (await gateway.command("keys", "show", "anna")).stdout
        assert ["log_content", "yes"] in [line.split() for line in shown.splitlines()]
        table = {
            line.split()[1]: line.split()[-1] for line in (await gateway.command("keys", "list")).stdout.splitlines()
        }
        assert (table["anna"], table["logged"], table["tester"]) == ("logged", "logged", "never")
        assert (await gateway.command("keys", "set", "anna", "--no-log-content")).returncode == 0
        assert (await gateway.call("GET", "keys/anna"))["log_content"] is False


async def test_without_a_file_no_key_can_have_it_and_one_that_had_it_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with logging_gateway(tmp_path) as gateway:
        made = await gateway.create("anna", log_content=True)
    async with keyed(tmp_path, SCRIPTS) as gateway:
        assert "1 keys have log_content, and nothing of them is logged: log.content is not set" in caplog.text
        assert (await ask(gateway, chat(), key=made["key"])).header(HEADER) is None
        other = await gateway.create("bert")
        for method, path, body in (
            ("POST", "keys", {"name": "carl", "log_content": True}),
            ("PATCH", f"keys/{other['id']}", {"log_content": True}),
        ):
            error = (await gateway.call(method, path, body, 400))["error"]
            assert error["param"] == "log_content"
            assert "log.content" in error["message"]
        await gateway.call("PATCH", f"keys/{made['id']}", {"owner": "Anna"})
        assert (await ask(gateway, chat(), key=made["key"])).header(HEADER) is None
        await gateway.call("PATCH", f"keys/{made['id']}", {"log_content": False})
    assert written(tmp_path) == []
    with pytest.raises(ConfigError, match=r"auth\.keys\[1\]\.log_content.*no file for prompts and answers"):
        async with keyed(tmp_path, SCRIPTS, auth=both()):
            pass


async def test_keys_of_an_earlier_version_are_not_logged(tmp_path: Path) -> None:
    async with keyed(tmp_path, SCRIPTS) as gateway:
        made = await gateway.create("anna")
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as database, database:
        database.execute("ALTER TABLE api_keys DROP COLUMN log_content")
        database.execute("UPDATE schema_version SET version_num = '0002'")
    async with logging_gateway(tmp_path) as gateway:
        assert (await gateway.call("GET", "keys/anna"))["log_content"] is False
        assert (await ask(gateway, chat(), key=made["key"])).header(HEADER) is None


async def test_nor_are_those_of_an_earlier_main_database(postgres: Server) -> None:
    url, record = postgres.database(), a_key("anna")
    async with main_database(url) as main:
        await main.reached()
    row = {name: value for name, value in row_of(record).items() if name != "log_content"}
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE lora_gateway.api_keys DROP COLUMN log_content")
        connection.execute("UPDATE lora_gateway.schema_version SET version_num = '0001'")
        names = ", ".join(row)
        marks = ", ".join(["%s"] * len(row))
        connection.execute(
            f"INSERT INTO lora_gateway.api_keys ({names}, change) VALUES ({marks}, 1)".encode(), [*row.values()]
        )
    async with main_database(url) as main:
        await main.reached()
        assert await main.call(logged) is False


def logged(connection: Connection) -> bool:
    found: bool = connection.execute(select(SHARED_KEYS.c.log_content)).scalar_one()
    return found


async def test_it_counts_on_every_gateway_that_has_a_file(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()

    @asynccontextmanager
    async def replica(name: str, **settings: Any) -> AsyncIterator[Keyed]:
        folder = tmp_path / name
        folder.mkdir()
        storage = {"url": url, "local": str(folder / "gateway.db")}
        async with keyed(folder, SCRIPTS, auth={**AUTH, "pepper": PEPPER}, storage=storage, **settings) as gateway:
            yield gateway

    log = {"log": {"content": str(tmp_path / "a" / "content.jsonl")}}
    async with replica("a", **log) as first, replica("b") as second:
        made = await first.create("anna", log_content=True)

        async def known() -> bool:
            return made["id"] in await second.rows()

        await until(known)
        assert (await second.rows())[made["id"]]["log_content"] is True
        assert (await ask(first, chat(), key=made["key"])).header(HEADER) == "true"
        assert (await ask(second, chat(), key=made["key"])).header(HEADER) is None
    assert len(written(tmp_path / "a")) == 1
