"""What the application learns of its client, through `scope["extensions"]["gateway"]` (F-6 to F-8, F-10, B-2)."""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from gateway.api.guard import ClientConnection, EdgeLimits
from tests.fakes.rawclient import RawClient
from tests.fakes.served import Served, served
from tests.patience import LATE

CHUNK = b"a" * 65536
START = {"type": "http.response.start", "status": 200, "headers": []}


def request(path: str, body: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode() + body


@dataclass
class Watched:
    """Does what the path says until its client leaves, and notes what it was told."""

    reached: threading.Event = field(default_factory=threading.Event)  # the phase that the path names
    told: queue.Queue[str] = field(default_factory=queue.Queue)
    ended: queue.Queue[str] = field(default_factory=queue.Queue)
    connections: list[weakref.ref[Any]] = field(default_factory=list)
    socket_options: list[tuple[int, int]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        client: ClientConnection = scope["extensions"]["gateway"]
        phase = scope["path"].removeprefix("/")
        gone = asyncio.Event()

        def leave() -> None:
            self.told.put("stalled" if client.stalled else "left")
            gone.set()

        client.on_disconnect = leave
        await getattr(self, phase)(client, gone, receive, send)
        self.ended.put(phase)

    async def body(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        self.reached.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        assert client.gone

    async def wait(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        await receive()
        self.reached.set()
        await gone.wait()
        assert (await receive())["type"] == "http.disconnect"

    async def stream(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        await send(START)
        while not gone.is_set():
            await send({"type": "http.response.body", "body": b"token", "more_body": True})
            self.reached.set()
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"dropped", "more_body": True})

    async def flood(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        self.connections.append(weakref.ref(client._cycle))
        await send(START)
        while not gone.is_set():
            blocked = asyncio.get_running_loop().call_later(0.1, self.reached.set)
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            blocked.cancel()

    async def large(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": CHUNK * 100})

    async def short(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send({"type": "http.response.body", "body": b"whole"})

    async def early(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        await send({**START, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"early"})

    async def late(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        await asyncio.sleep(3)
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await send(START)
        await send({"type": "http.response.body", "body": b"%d" % size})

    async def cut(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send({"type": "http.response.body", "body": CHUNK + b"last", "more_body": True})
        client.cut()
        await send({"type": "http.response.body", "body": b"dropped"})

    async def cut_unanswered(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        await receive()
        client.cut()

    async def options(self, client: ClientConnection, gone: asyncio.Event, receive: Any, send: Any) -> None:
        sock = client._cycle.transport.get_extra_info("socket")
        self.socket_options = [
            (option, sock.getsockopt(level, option))
            for level, option in (
                (socket.IPPROTO_TCP, socket.TCP_NODELAY),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            )
        ]
        await self.short(client, gone, receive, send)


@pytest.fixture(scope="module")
def server_and_app() -> Iterator[tuple[Served, Watched]]:
    app = Watched()
    with served(app, EdgeLimits(body_timeout=9 * LATE, write_stall=20)) as server:
        yield server, app


@pytest.fixture
def server(server_and_app: tuple[Served, Watched]) -> Served:
    return server_and_app[0]


@pytest.fixture
def app(server_and_app: tuple[Served, Watched]) -> Watched:
    app = server_and_app[1]
    app.reached.clear()
    assert app.told.empty()
    while not app.ended.empty():
        app.ended.get_nowait()
    return app


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does, nothing is logged as an error of the application."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


PHASES = {
    "while its body is read": request("body", b"half", length=100),
    "before the answer": request("wait"),
    "during the stream": request("stream"),
    "while it does not read": request("flood"),
}


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@pytest.mark.parametrize("behind", [False, True], ids=["alone", "with a second request behind"])
@pytest.mark.parametrize("data", PHASES.values(), ids=PHASES)
def test_the_application_is_told_in_every_phase(
    server: Served, app: Watched, data: bytes, behind: bool, how: str
) -> None:
    """And at once: what else would tell it, a time-out, comes later than anybody waits here."""
    behind = behind and data != PHASES["while its body is read"]  # there, more bytes are more body
    for _ in range(5):
        app.reached.clear()
        client = RawClient(server.port)
        client.send(data)
        assert app.reached.wait(LATE)
        if behind:
            client.send(request("short"))
        if how == "half-close":
            client.half_close()
        else:
            client.leave(reset=how == "rst")
        assert app.told.get(timeout=LATE) == "left"
        app.ended.get(timeout=LATE)
        client.leave()
    assert app.told.empty()
    assert app.ended.empty()  # a request behind the first was never begun


def test_a_client_that_leaves_after_its_answer_disturbs_nobody(server: Served, app: Watched) -> None:
    with RawClient(server.port) as client:
        for _ in range(3):
            client.send(request("short"))
            assert client.answer().body == b"whole"
    with RawClient(server.port) as client:  # the loop has seen the first one leave before it answers this
        client.send(request("short"))
        client.answer()
    assert app.told.empty()


def test_only_the_request_that_runs_is_told(server: Served, app: Watched) -> None:
    with RawClient(server.port) as client:
        client.send(request("short"))
        client.answer()
        client.send(request("wait"))
        assert app.reached.wait(LATE)
    app.told.get(timeout=LATE)
    assert [app.ended.get(timeout=LATE) for _ in range(2)] == ["short", "wait"]
    assert app.told.empty()


def test_a_cut_answer_is_flushed_and_never_looks_whole(server: Served, app: Watched) -> None:
    with RawClient(server.port) as client:
        client.send(request("cut"))
        data = client.read_rest()
    assert data.endswith(b"last\r\n")
    assert app.ended.get(timeout=LATE) == "cut"
    assert app.told.empty()  # it was the application that ended it


def test_a_cut_before_the_answer_closes_without_a_word(server: Served, app: Watched) -> None:
    with RawClient(server.port) as client:
        client.send(request("cut_unanswered"))
        assert client.read_rest() == b""


def test_an_answer_before_the_whole_body_keeps_the_connection_in_step(server: Served, app: Watched) -> None:
    """The rest of the body is dropped, and is not taken for a request."""
    with RawClient(server.port) as client:
        client.send(request("early", length=300_000))
        assert client.answer().body == b"early"
        client.send(request("short").ljust(300_000, b"a") + request("short"))
        assert client.answer().body == b"whole"


def test_what_is_sent_leaves_without_delay_and_vanished_clients_are_noticed(server: Served, app: Watched) -> None:
    with RawClient(server.port) as client:
        client.send(request("options"))
        client.answer()
    options = dict(app.socket_options)
    assert options[socket.TCP_NODELAY] == 1
    assert options[socket.TCP_USER_TIMEOUT] == 20_000
    assert options[socket.SO_KEEPALIVE] == 1


def eventually(holds: Callable[[], bool]) -> None:
    """Waits for what the server, a thread of its own, does a moment later."""
    until = time.monotonic() + LATE
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def connections() -> list[Any]:
    return psutil.Process().net_connections("tcp4")


@pytest.fixture
def impatient() -> Iterator[tuple[Served, Watched]]:
    app = Watched()
    with served(app, EdgeLimits(write_stall=0.4, body_timeout=1.0)) as server:
        yield server, app


def test_a_client_that_does_not_read_is_reset_and_costs_nothing_more(impatient: tuple[Served, Watched]) -> None:
    server, app = impatient
    files = psutil.Process().num_fds()
    clients = [RawClient(server.port, receive_buffer=8192) for _ in range(20)]
    for client in clients:
        client.send(request("flood"))
    for _ in clients:
        assert app.told.get(timeout=LATE) == "stalled"
        app.ended.get(timeout=LATE)
    for client in clients:
        client.read_rest()
        assert client.reset
        client.leave()
    with RawClient(server.port) as client:  # after a turn of the loop nothing holds the dead ones
        client.send(request("short"))
        client.answer()
    gc.collect()
    assert [one() for one in app.connections] == [None] * 20
    eventually(lambda: psutil.Process().num_fds() == files)


def test_a_client_that_reads_too_slowly_is_reset() -> None:
    """What the kernel holds for it goes too: it could keep megabytes for as long as the client cares to trickle."""
    app = Watched()
    with (
        served(app, EdgeLimits(write_stall=0.4, min_body_rate=50_000_000)) as server,
        RawClient(server.port, receive_buffer=65536) as client,
    ):
        client.send(request("flood"))
        pace = threading.Event()
        while client.receive():
            pace.wait(0.02)
        assert client.reset
        assert app.told.get(timeout=LATE) == "stalled"


def test_a_client_is_not_blamed_for_a_body_that_the_application_does_not_take() -> None:
    """For longer than the limit on slow bodies, which a busy machine may need once the application takes it."""
    with served(Watched(), EdgeLimits(body_timeout=2.5)) as server, RawClient(server.port) as client:
        client.send(request("late", b"a" * 3_000_000))
        assert client.answer().body == b"3000000"
        client.send(request("late", length=4).replace(b"Host", b"Expect: 100-continue\r\nHost"))
        assert client.answer().status == 100
        client.send(b"late")
        assert client.answer().body == b"4"


def test_a_body_that_stops_after_its_answer_closes_without_a_second_one(impatient: tuple[Served, Watched]) -> None:
    server, _ = impatient
    with RawClient(server.port) as client:
        client.send(request("early", length=100))
        assert client.answer().body == b"early"
        assert client.read_rest() == b""


def test_a_client_that_never_reads_the_end_of_its_answer_is_reset(impatient: tuple[Served, Watched]) -> None:
    """The application is done, and nobody waits in `send` any more."""
    server, app = impatient
    with RawClient(server.port, receive_buffer=8192) as client:
        client.send(request("large"))
        assert app.ended.get(timeout=LATE) == "large"
        eventually(lambda: server.port not in [one.laddr.port for one in connections() if one.status == "ESTABLISHED"])
        client.read_rest()
        assert client.reset


def test_a_slow_client_that_reads_gets_all() -> None:
    """For twice the stall limit and more."""
    app = Watched()
    with served(app, EdgeLimits(write_stall=1.0)) as server, RawClient(server.port, receive_buffer=65536) as client:
        client.send(request("large"))
        size = 0
        slow = time.monotonic() + 2.5
        while size < len(CHUNK) * 100:
            piece = client.receive()
            assert piece
            size += len(piece)
            if time.monotonic() < slow and size < len(CHUNK) * 90:
                time.sleep(0.03)
        assert time.monotonic() > slow, "it was not slow"
        assert app.told.empty()


def test_a_client_whose_body_stops_is_told_to_the_application(impatient: tuple[Served, Watched]) -> None:
    server, app = impatient
    with RawClient(server.port) as client:
        client.send(request("body", b"half", length=100))
        assert client.answer().status == 408
    app.told.get(timeout=LATE)
    assert app.ended.get(timeout=LATE) == "body"
