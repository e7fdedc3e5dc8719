"""The one connection to Valkey (or Redis).

One task owns it: it sends what callers have queued, reads exactly as many answers, and goes on to what was queued
meanwhile.  A caller only waits for its own future, so one that is cancelled leaves nothing unread behind; clients of
this protocol that let each caller read for itself have handed one caller's answer to the next more than once
(redis-py 2624, 2665).  Whatever goes wrong, the connection is closed, everybody who waits is told, and a new one is
made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.domain.secret import Secret
from gateway.limits.breaker import Breaker
from gateway.limits.script import SCRIPT

_CONNECT = 0.2  # seconds
_RECHECK = 0.01  # seconds
_BATCH = 128  # calls in flight
_QUEUE = 8192  # calls that wait; beyond it nobody is asked

#: The keys of a call, and its arguments: the operation, its time (or ""), its lease, and what belongs to the operation.
Call = tuple[Sequence[str], Sequence[str | int]]
Answer = list[Any]


class Unreachable(Exception):
    """No answer in time.  What was asked may have been done."""


class Owner(Protocol):
    """Whose connection it is.  None of these may wait."""

    def greeting(self) -> list[Call]:
        """What must be told before anything else is asked, on a new connection."""
        ...

    def connected(self, answers: list[Answer]) -> None:
        """It was told; calls go through from now on."""
        ...

    def lost(self) -> None:
        """Calls do not go through any more."""
        ...

    def given_up(self, why: str) -> None:
        """They have not for a while: it is a state now, and not a moment."""
        ...


class _Job:
    __slots__ = ("_done", "_failed", "_future", "_late", "call")

    def __init__(
        self,
        call: Call,
        future: asyncio.Future[Answer] | None = None,
        late: Callable[[Answer], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        self.call = call
        self._future = future
        self._late = late
        self._failed = failed
        self._done = False

    def answered(self, answer: Answer) -> None:
        self._done = True
        if self._future is None:
            return
        if not self._future.done():
            self._future.set_result(answer)
        elif self._late is not None:
            self._late(answer)

    def ended(self) -> None:
        """Without an answer, if there was none."""
        if self._done:
            return
        self._done = True
        if self._failed is not None:
            self._failed()
        if self._future is not None and not self._future.done():
            self._future.set_exception(Unreachable())


class Link:
    """`timeout`: seconds that an answer may take.  `run` is the id of the server's run (it changes with a restart)."""

    def __init__(self, url: Secret, timeout: float, owner: Owner, random: Random) -> None:
        self._connection_of = _connections(url)
        self._timeout = timeout
        self._owner = owner
        self._breaker = Breaker(random)
        self._queue: deque[_Job] = deque()
        self._waiting = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sha = ""
        self.run = ""
        self.up = False

    async def start(self) -> None:
        """Returns when the first try has come to an end, whatever it was."""
        self._task = asyncio.create_task(self._serve(), name="limits")
        await self._tried.wait()

    async def close(self, farewell: Call) -> None:
        """What is queued is still sent, and this after it, if it goes through."""
        if self._task is None:
            return
        with contextlib.suppress(Unreachable):
            await self.call(farewell)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def call(self, call: Call, late: Callable[[Answer], None] | None = None) -> Answer:
        """The answer.  Raises Unreachable.  `late` is given an answer that comes when the caller was cancelled."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._put(_Job(call, future, late))
        try:
            return await future
        except asyncio.CancelledError:
            if late is not None and future.done() and not future.cancelled() and future.exception() is None:
                late(future.result())
            raise

    def post(self, call: Call, failed: Callable[[], None]) -> None:
        """Nobody waits for the answer; `failed` is called if none comes: it may have been done, or not.  Raises
        Unreachable."""
        self._put(_Job(call, failed=failed))

    def _put(self, job: _Job) -> None:
        if not self.up or len(self._queue) >= _QUEUE:
            raise Unreachable
        self._queue.append(job)
        self._waiting.set()

    async def _serve(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            connection = self._connection_of()
            why = ""
            try:
                await self._greet(connection)
                while True:
                    await self._waiting.wait()
                    await self._next(connection)
            except (RedisError, OSError, TimeoutError) as error:
                why = f"{type(error).__name__}: {error}"[:200]
            finally:
                self._lose()
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            if self._breaker.failed(clock()):
                self._owner.given_up(why)
            await asyncio.sleep(self._breaker.pause())

    async def _greet(self, connection: AbstractConnection) -> None:
        try:
            with _Patience(_CONNECT):
                await connection.connect()  # type: ignore[no-untyped-call]
            with _Patience(max(self._timeout, _CONNECT)):
                loaded, info = await _exchange(connection, [("SCRIPT", "LOAD", SCRIPT), ("INFO", "server")])
            _check([loaded])
            self._sha, self.run = loaded, _run_of(info)
            answers = []
            calls = deque(self._owner.greeting())
            while calls:
                batch = [calls.popleft() for _ in range(min(_BATCH, len(calls)))]
                with _Patience(self._timeout):
                    answers += await _exchange(connection, map(self._command, batch))
            _check(answers)
        finally:
            self._tried.set()
        self.up = True
        self._breaker.succeeded()
        self._owner.connected(answers)

    async def _next(self, connection: AbstractConnection) -> None:
        jobs = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
        if not self._queue:
            self._waiting.clear()
        try:
            with _Patience(self._timeout):
                answers = await _exchange(connection, [self._command(job.call) for job in jobs])
                if any(isinstance(answer, NoScriptError) for answer in answers):
                    await _exchange(connection, [("SCRIPT", "LOAD", SCRIPT)])
                    again = [
                        job for job, answer in zip(jobs, answers, strict=True) if isinstance(answer, NoScriptError)
                    ]
                    repeated = iter(await _exchange(connection, [self._command(job.call) for job in again]))
                    answers = [next(repeated) if isinstance(a, NoScriptError) else a for a in answers]
            for job, answer in zip(jobs, answers, strict=True):
                if not isinstance(answer, ResponseError):
                    job.answered(answer)
            _check(answers)
        finally:
            for job in jobs:
                job.ended()

    def _command(self, call: Call) -> tuple[str | int, ...]:
        keys, (operation, now, lease, *rest) = call
        return ("EVALSHA", self._sha, len(keys), *keys, operation, now, lease, self.run, *rest)

    def _lose(self) -> None:
        if self.up:
            self.up = False
            self._owner.lost()
        while self._queue:
            self._queue.popleft().ended()
        self._waiting.clear()


async def _exchange(connection: AbstractConnection, commands: Iterable[Sequence[str | int]]) -> Answer:
    """The answers to some commands, errors among them."""
    commands = list(commands)
    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    answers: Answer = []
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except ResponseError as error:
            answers.append(error)
    return answers


def _check(answers: Answer) -> None:
    """Raises the first error: a server that does not do what it is asked is left, the next may be one that does."""
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer


def _run_of(info: object) -> str:
    """The id of the server's run; "-" where it does not say."""
    lines = info.splitlines() if isinstance(info, str) else ()
    return next((line[7:] for line in lines if line.startswith("run_id:")), "-")


def _connections(url: Secret) -> Callable[[], AbstractConnection]:
    """Makes connections to where the URL leads."""
    settings: dict[str, Any] = {
        **parse_url(url.reveal().replace("valkey", "redis", 1) if url.reveal().startswith("valkey") else url.reveal()),
        "socket_timeout": None,  # time is kept here
        "socket_connect_timeout": _CONNECT,
        "protocol": 2,
        "decode_responses": True,
        "driver_info": None,
        "health_check_interval": 0,
    }
    kind = SSLConnection if settings.pop("connection_class", None) is SSLConnection else Connection

    def connection() -> AbstractConnection:
        return kind(**settings)

    return connection


class _Patience:
    """Ends the block with TimeoutError after so many seconds.  When the time is up, the loop itself may have stood
    still, and what is waited for may lie in the socket: it gets one turn to be read."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("patience is a task's")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._seconds, self._doubt)

    def _doubt(self) -> None:
        self._timer = self._loop.call_later(_RECHECK, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._expired and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError(f"no answer within {self._seconds * 1000:.0f} ms") from None
