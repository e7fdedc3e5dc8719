"""How an answer is framed, and that none whose application is at fault looks whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.fakes.rawclient import RawClient
from tests.fakes.served import Served, served

START, BODY = "http.response.start", "http.response.body"
Headers = Sequence[tuple[bytes, bytes]]


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": START, "status": status, "headers": list(headers)}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": BODY, "body": data, "more_body": more}


LENGTH_5 = (b"content-length", b"5")
ANSWERS: dict[str, tuple[Sequence[dict[str, Any]], bytes]] = {
    "length": ([start(LENGTH_5), body(b"he", True), body(b"llo")], b"content-length: 5\r\n\r\nhello"),
    "chunks": (
        [start(), body(b"he", True), body(b"", True), body(b"llo")],
        b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ),
    "empty": ([start(), body(b"")], b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    "nothing": ([start(status=204), body(b"")], b"HTTP/1.1 204 No Content\r\n\r\n"),
    "closes": (
        [start(LENGTH_5, (b"connection", b"close")), body(b"hello")],
        b"content-length: 5\r\nconnection: close\r\n\r\nhello",
    ),
}
#: With what must not be said.
FAULTS: dict[str, tuple[Sequence[dict[str, Any]], bytes]] = {
    "break": ([start((b"x", b"a\r\nset-cookie: b")), body(b"hello")], b"set-cookie"),
    "feed": ([start((b"x", b"a\nset-cookie: b")), body(b"hello")], b"set-cookie"),
    "return": ([start((b"x", b"a\rset-cookie: b")), body(b"hello")], b"set-cookie"),
    "name": ([start((b"x\r\nset-cookie", b"b")), body(b"hello")], b"set-cookie"),
    "zero": ([start((b"x", b"a\0b")), body(b"hello")], b"\0"),
    "long": ([start(LENGTH_5), body(b"hello!")], b"hello!"),
    "short": ([start(LENGTH_5), body(b"hell")], b"hell"),
    "twice": ([start(LENGTH_5), start(LENGTH_5), body(b"hello")], b"hello"),
    "early": ([body(b"hello"), start(LENGTH_5)], b"hello"),
    "alone": ([start(LENGTH_5)], b"content-length: 5"),
    "trailers": ([start(), {"type": "http.response.trailers"}], b"chunked"),
    "late": ([start(), body(b"hello", True), start()], b"0\r\n\r\n"),
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    name = scope["path"].removeprefix("/")
    for message in (ANSWERS.get(name) or FAULTS[name])[0]:
        await send(message)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(app) as running:
        yield running


def asked(server: Served, method: str, name: str, then: str = "close") -> bytes:
    """All that comes until the server closes the connection."""
    with RawClient(server.port) as client:
        client.send(f"{method} /{name} HTTP/1.1\r\nHost: x\r\nConnection: {then}\r\n\r\n".encode())
        return client.read_rest()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_framed_as_its_head_says(server: Served, name: str) -> None:
    _, wanted = ANSWERS[name]
    got = asked(server, "GET", name)
    assert got.replace(b"connection: close\r\n", b"").endswith(wanted.replace(b"connection: close\r\n", b""))
    assert got.count(b"connection: close\r\n") == 1


@pytest.mark.parametrize("name", ["length", "chunks"])
def test_an_answer_to_head_is_a_head(server: Served, name: str) -> None:
    got = asked(server, "HEAD", name)
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert got.endswith(b"\r\n\r\n")
    assert b"chunked" not in got


def test_after_an_answer_the_connection_takes_another_request(server: Served) -> None:
    with RawClient(server.port) as client:
        for _ in range(3):
            client.send(b"GET /length HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.answer().body == b"hello"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_application_ends_in_no_whole_answer_and_sets_no_header(
    server: Served, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    got = asked(server, "GET", name, "keep-alive")
    assert FAULTS[name][1] not in got
    assert got.startswith(b"HTTP/1.1 200 " if name == "late" else b"HTTP/1.1 500 ")
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["uvicorn.error"]
