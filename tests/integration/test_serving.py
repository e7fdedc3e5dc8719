"""Listening, draining and stopping, with the real server (F-22, in the order of `gateway.server.serve`)."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.api.guard import ClientConnection, EdgeLimits
from gateway.server import ListenError, Stop, listen, serve
from tests.fakes.rawclient import RawClient
from tests.fakes.served import served
from tests.patience import LATE

LARGE = b"a" * 20_000_000


def request(path: str) -> bytes:
    return f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@dataclass
class Gateway:
    """As much of a gateway as draining concerns: turns requests away once it drains, and can end its streams."""

    draining: bool = False
    running: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    finish: threading.Event = field(default_factory=threading.Event)
    streams: dict[asyncio.Event, ClientConnection] = field(default_factory=dict)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        if self.draining:
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": b"draining"})
            return
        if scope["path"] == "/large":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": LARGE})
            return
        if scope["path"] == "/waiting":  # an answer that has not begun
            await self._finished()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/stream":
            ended = asyncio.Event()
            self.streams[ended] = scope["extensions"]["gateway"]
            await send({"type": "http.response.body", "body": b"token", "more_body": True})
            await self._finished(ended)
        elif scope["path"] == "/stubborn":
            await send({"type": "http.response.body", "body": b"token", "more_body": True})
            self.running.release()
            await asyncio.Event().wait()
        await send({"type": "http.response.body", "body": b"end"})

    async def _finished(self, ended: asyncio.Event | None = None) -> None:
        self.running.release()
        while not self.finish.is_set() and not (ended and ended.is_set()):
            await asyncio.sleep(0.005)

    def end_streams(self) -> None:
        for ended, client in self.streams.items():
            client.cut()
            ended.set()


@contextmanager
def draining(path: str, **options: Any) -> Iterator[tuple[Any, Gateway, RawClient]]:
    """A server that drains while a request to `path` runs."""
    gateway = Gateway()
    with served(gateway, end_streams=gateway.end_streams, **options) as server, RawClient(server.port) as client:
        client.send(request(path))
        assert gateway.running.acquire(timeout=LATE)
        gateway.draining = True
        server.ask_to_stop()
        assert server.draining.wait(LATE)
        yield server, gateway, client


def test_a_stream_that_runs_is_finished_before_anything_stops() -> None:
    with draining("stream") as (server, gateway, client):
        assert client.read_until(b"token")
        with RawClient(server.port) as late:
            late.send(request("stream"))
            assert late.answer().status == 503
        assert server.steps == ["begin_drain"]
        gateway.finish.set()
        assert client.read_rest().endswith(b"3\r\nend\r\n0\r\n\r\n")
        assert server.ended.wait(LATE)
        assert server.steps == ["begin_drain", "shutdown", "shut down"]


def test_an_answer_that_begins_while_draining_says_that_the_connection_closes() -> None:
    with draining("waiting") as (_, gateway, client):
        gateway.finish.set()
        answer = client.answer()
        assert (answer.status, answer.body) == (200, b"end")
        assert answer.headers["connection"] == "close"


def test_idle_connections_are_closed_when_draining_begins() -> None:
    gateway = Gateway()
    with served(gateway) as server, RawClient(server.port) as idle:
        idle.send(request("short"))
        idle.answer()
        server.ask_to_stop()
        assert idle.read_rest() == b""


def test_streams_that_do_not_end_in_time_are_ended_by_the_application() -> None:
    with draining("stream", drain_timeout=0.2) as (server, _, client):
        rest = client.read_rest()
        assert rest.endswith(b"token\r\n")  # cut: no terminating chunk
        assert server.ended.wait(LATE)
        assert server.steps == ["begin_drain", "end_streams", "shutdown", "shut down"]


def test_an_answer_that_is_still_being_read_is_sent_whole() -> None:
    gateway = Gateway()
    with served(gateway) as server, RawClient(server.port, receive_buffer=65536) as client:
        client.send(request("large"))
        client.read_until(b"\r\n\r\n")
        server.ask_to_stop()
        assert server.draining.wait(LATE)
        assert client.read_rest().endswith(b"aaa\r\n0\r\n\r\n")
    assert server.steps[-1] == "shut down"


def test_asked_twice_everything_ends_at_once() -> None:
    """Though a request ignores it and the engines take long to stop."""
    with draining("stubborn", shutdown_seconds=9 * LATE) as (server, _, client):
        server.ask_to_stop()
        assert server.ended.wait(LATE)
        assert server.steps == ["begin_drain", "end_streams", "shutdown"]
        assert not client.read_rest().endswith(b"0\r\n\r\n")


def test_the_port_is_free_again_afterwards() -> None:
    with served(Gateway()) as server:
        port = server.port
    listen("127.0.0.1", port).close()


def test_a_taken_port_is_named_before_anything_starts() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}: another process uses this port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("192.0.2.1", 8000, r"192\.0\.2\.1:8000: not an address of this machine"),
        ("not a host", 8000, r"not a host:8000: no such host"),
        ("a..b", 8000, r"a\.\.b:8000: "),
        ("127.0.0.1", 70000, r"127\.0\.0\.1:70000: a port lies"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_named(host: str, port: int, message: str) -> None:
    with pytest.raises(ListenError, match=message):
        listen(host, port)


def test_localhost_is_what_most_clients_take_it_for() -> None:
    with listen("localhost", 0) as listener:
        assert listener.family == socket.AF_INET


async def test_what_was_started_is_shut_down_when_serving_fails() -> None:
    stopped = []

    async def shutdown() -> None:
        stopped.append(True)

    def fail(host: str, port: int) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        await serve(
            Gateway(),
            listen("127.0.0.1", 0),
            EdgeLimits(),
            stop=Stop(),
            on_refused=lambda reason: None,
            on_listening=fail,
            begin_drain=lambda: None,
            end_streams=lambda: None,
            shutdown=shutdown,
        )
    assert stopped == [True]


PROGRAM = textwrap.dedent("""
    import asyncio
    from gateway.api.guard import EdgeLimits
    from gateway.server import Stop, listen, run, serve

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"token", "more_body": True})
        if scope["path"] != "/short":
            await asyncio.sleep(0.5 if scope["path"] == "/stream" else 600)
        await send({"type": "http.response.body", "body": b"end"})

    async def shutdown():
        print("shutdown", flush=True)

    async def main():
        asyncio.get_running_loop().slow_callback_duration = 60  # that a machine is busy is no fault
        stop = Stop()
        with stop.on_signals():
            await serve(
                app, listen("127.0.0.1", 0), EdgeLimits(), stop=stop, on_refused=print,
                on_listening=lambda host, port: print(port, flush=True),
                begin_drain=lambda: print("begin_drain", flush=True),
                end_streams=lambda: None, shutdown=shutdown,
            )

    run(main())
""")


@contextmanager
def process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield running, int(running.stdout.readline())
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_lets_requests_finish_and_the_process_ends_well(number: signal.Signals) -> None:
    with process() as (running, port), RawClient(port) as client:
        client.send(request("stream"))
        client.read_until(b"token")
        running.send_signal(number)
        assert client.read_rest().endswith(b"3\r\nend\r\n0\r\n\r\n")
        out, errors = running.communicate(timeout=LATE)
        assert (running.returncode, out, errors) == (0, "begin_drain\nshutdown\n", "")


def test_a_second_signal_ends_the_process_at_once() -> None:
    with process() as (running, port), RawClient(port) as client:
        client.send(request("hang"))
        client.read_until(b"token")
        running.send_signal(signal.SIGINT)
        assert running.stdout is not None
        assert running.stdout.readline() == "begin_drain\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(LATE) == 0
