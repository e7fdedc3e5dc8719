"""Listening, serving and stopping.

uvicorn brings the protocol and the ASGI cycle; the listener, the signals and the order of the end are ours: its own
server closes the application's lifespan while requests are still running (reliability: M3), which loses what they
would have settled.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from gateway.api.guard import EdgeLimits, GuardedProtocol, guarded

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

log = logging.getLogger("gateway.server")

BACKLOG = 2048
SPARE_FILES = 256  # logs, databases, engines
END_SECONDS = 5.0  # for requests that were told to end: an error event, their last bytes, settling
FLUSH_SECONDS = 1.0  # for what is still to be written when no request runs any more
HURRY_SECONDS = 0.45  # for each of the steps that remain after a second signal: under two seconds together

# Seconds for which a thread may keep the interpreter to itself while another wants it.  With Python's 5 ms the loop,
# and with it every stream, would stand still that long while the ledger's thread prepares what it writes.
_SWITCH = 0.0005

T = TypeVar("T")


class ListenError(Exception):
    """The address cannot be listened on; the text names it and says what to do."""


class Stop:
    """The wish that serving ends: asked once, let requests finish; asked again, end now."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.urgent = asyncio.Event()

    def ask(self) -> None:
        (self.urgent if self.asked.is_set() else self.asked).set()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT (Ctrl-C) ask.  In the main thread, with a running loop."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.ask)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs the program on uvloop: the stock event loop costs several times as much for each request."""
    sys.setswitchinterval(_SWITCH)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before anything else is started.  Port 0 takes a free one.

    Raises ListenError.
    """
    if not 0 <= port <= 65535:
        raise ListenError(f"cannot listen on {host}:{port}: a port lies between 0 and 65535")
    try:
        # IPv4 first: "localhost" should be what most clients take it for.
        family, kind, protocol, _, address = min(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE),
            key=lambda found: found[0] != socket.AF_INET,
        )
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            # Listening here and not later: two processes may both bind a port, but only one may listen on it.
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {host}:{port}: no such host; set server.host to an address") from error
    except (OSError, UnicodeError) as error:
        raise ListenError(f"cannot listen on {host}:{port}: {_cause(error)}") from error
    listener.setblocking(False)
    return listener


def _cause(error: Exception) -> str:
    match getattr(error, "errno", None):
        case errno.EACCES | errno.EPERM:
            return "not permitted; ports below 1024 need privileges, choose another with --port"
        case errno.EADDRINUSE:
            return "another process uses this port; stop it or choose another with --port"
        case errno.EADDRNOTAVAIL:
            return "not an address of this machine; set server.host to one that is"
    return str(error)


async def serve(
    app: ASGI3Application,
    listener: socket.socket,
    limits: EdgeLimits,
    *,
    stop: Stop,
    on_refused: Callable[[str], None],
    on_listening: Callable[[str, int], None],
    begin_drain: Callable[[], None],
    end_streams: Callable[[], None],
    shutdown: Callable[[], Awaitable[None]],
    drain_timeout: float = 30.0,
) -> None:
    """Serves until `stop` is asked, then ends in this order:

    1. `begin_drain()`: the application turns new requests away and is no longer ready; those that run may finish,
       for `drain_timeout` seconds.  The port stays open, so that a load balancer sees why.
    2. `end_streams()`: the application ends the rest, which have END_SECONDS to say so to their clients.
    3. The port is closed, what was written is flushed, and what still runs is cancelled.
    4. `shutdown()`: nothing calls the application any more; engines and storage may stop.

    Asked again, the rest takes under two seconds; then `shutdown()` may be cancelled before its end.
    Takes the listener over and closes it.  `shutdown()` runs whatever happens.
    """
    _allow_open_files(2 * limits.max_connections)
    _notice_vanished_clients(listener, limits)
    state = ServerState()
    loop = asyncio.get_running_loop()
    try:
        server = await _start(app, listener, state, guarded(limits, on_refused))
        try:
            on_listening(*listener.getsockname()[:2])
            await stop.asked.wait()
            flushed_by = loop.time() + drain_timeout
            begin_drain()
            for connection in list(state.connections):
                connection.shutdown()  # an idle one closes, a busy one after its answer
            await _finished(lambda: state.tasks, stop, drain_timeout, hurried=0.0)
            if state.tasks:
                end_streams()
                await _finished(lambda: state.tasks, stop, END_SECONDS)
            server.close()
            await _close_connections(state, stop, max(FLUSH_SECONDS, flushed_by - loop.time()))
        finally:
            server.close()
            await _drop_connections(state)
    finally:
        await _stop_rest(shutdown(), stop)


async def _start(
    app: ASGI3Application, listener: socket.socket, state: ServerState, protocol: type[GuardedProtocol]
) -> asyncio.Server:
    config = Config(
        app,
        http=protocol,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    config.load()
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: protocol(config=config, server_state=state, app_state={}, _loop=loop), sock=listener, backlog=BACKLOG
    )


def _notice_vanished_clients(listener: socket.socket, limits: EdgeLimits) -> None:
    """Lets the kernel end connections whose client vanished without a word; accepted sockets inherit the options.

    It gives up on one that acknowledges nothing or keeps its window shut for `write_stall`, and asks an idle one
    whether it is still there.  This is also the bound on what is still to be sent when a connection closes.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.write_stall * 1000))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)


def _allow_open_files(wanted: int) -> None:
    """Raises the limit of open files: each connection needs one, and one more for its upstream."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted + SPARE_FILES if hard == resource.RLIM_INFINITY else min(wanted + SPARE_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("the limit of open files is %d; server.max_connections wants %d (see ulimit -n)", allowed, wanted)


async def _close_connections(state: ServerState, stop: Stop, seconds: float) -> None:
    """Closes each connection when its last bytes are written."""
    connections = _guarded(state)
    for connection in connections:
        connection.transport.close()
    await _finished(lambda: {one.closed for one in connections if not one.closed.done()}, stop, seconds)


async def _drop_connections(state: ServerState) -> None:
    """Ends what is left, at once."""
    tasks = list(state.tasks)
    connections = _guarded(state)
    for task in tasks:
        task.cancel()
    for connection in connections:
        connection.transport.abort()
    if ending := {*tasks, *(connection.closed for connection in connections)}:
        await asyncio.wait(ending, timeout=HURRY_SECONDS)


def _guarded(state: ServerState) -> list[GuardedProtocol]:
    return [connection for connection in state.connections if isinstance(connection, GuardedProtocol)]


async def _stop_rest(shutdown: Awaitable[None], stop: Stop) -> None:
    """Awaits the shutdown; breaks it off when it takes too long after a second signal."""
    task = asyncio.ensure_future(shutdown)
    await _finished(lambda: () if task.done() else (task,), stop, None)
    if not task.done():
        log.warning("stopping was broken off after the second signal")
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def _finished(
    running: Callable[[], Collection[asyncio.Future[Any]]],
    stop: Stop,
    seconds: float | None,
    hurried: float = HURRY_SECONDS,
) -> None:
    """Waits until nothing runs, at most `seconds` (None: without limit), and at most `hurried` when asked twice."""
    patience = asyncio.create_task(_patience(stop, seconds, hurried))
    try:
        while not patience.done() and (rest := running()):
            await asyncio.wait({*rest, patience}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        patience.cancel()


async def _patience(stop: Stop, seconds: float | None, hurried: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.urgent.wait()
            await asyncio.sleep(hurried)
