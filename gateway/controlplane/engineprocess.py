"""One life of an engine: its process tree from the start to the death, its health and its log.

No process of it is left when `EngineProcess.run` returns, however it does: the wardens see to that (see `warden`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import ssl
import sys
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

import httpx2

from gateway.controlplane import enginelog, warden
from gateway.controlplane.launch import LOOPBACK, EngineSpec, command_line, engine_environment
from gateway.controlplane.observed import EngineEndpoint
from gateway.controlplane.supervision import Death, Supervision
from gateway.domain.secret import Secret

logger = logging.getLogger("gateway.engine")
output_logger = logging.getLogger(
    "gateway.engine.output"
)  # what the engine prints; apart, so that it can be turned off

_LAST_LINES = 200  # of its log that an engine's death is explained from
_HEALTHY, _SAYS_IT_IS_DEAD = 200, 503  # answers to /health
_KILL_LIMIT = 2.0  # seconds in which the kernel ends a killed process tree

# Shares of `stop_timeout` after which the inner warden, the outer one and we stop being patient.
_ENGINE_PATIENCE, _WARDEN_PATIENCE, _OUR_PATIENCE = 0.75, 0.8, 0.85


class EngineProcess:
    """A vLLM process tree.  Runs once.

    `started` is called when the process runs, `ready` with where it listens as soon as it answers, `progress` with
    what it does until then.  They are called in the event loop and must not block.
    """

    def __init__(
        self,
        spec: EngineSpec,
        environ: Mapping[str, str],
        rules: Supervision,
        *,
        started: Callable[[], None],
        ready: Callable[[EngineEndpoint], None],
        progress: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._rules = rules
        self._started = started
        self._ready = ready
        self._progress = progress
        self._key = Secret(secrets.token_urlsafe(32))
        self._environment = engine_environment(environ, spec, self._key, offline=Path(spec.model).is_dir())
        credentials = (self._environment.get("HF_TOKEN", ""), *(value.reveal() for value in spec.env.values()))
        self._lines = enginelog.LineReader([self._key.reveal(), *credentials])
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._log_ended = asyncio.Event()
        self._lifeline: FileIO | None = None
        self._ready_at: float | None = None
        self._alarm = asyncio.Event()  # its log says that it dies

    def kill(self) -> None:
        """SIGKILL to the whole tree at once, if it runs: the end of the warden's standard input."""
        if self._lifeline is not None:
            self._lifeline.close()

    async def run(self) -> Death:
        """Runs the engine until its end.  Cancelled, it stops the engine within `stop_timeout`."""
        if sys.platform != "linux":
            reason = "the gateway can run an engine on Linux only; attach to one that runs elsewhere with base_url"
            return Death(reason, time.monotonic(), final=True)
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        # The pipes are ours and not asyncio's, for which a process has not ended as long as anybody holds its output.
        with free_port() as port, pipe() as (stdin, lifeline), pipe() as (output, stdout):
            try:
                process = await asyncio.create_subprocess_exec(
                    *guarded(command_line(self._spec, port), self._spec.stop_timeout),
                    env=self._environment,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stdout,
                    start_new_session=True,  # Ctrl-C on the terminal is for the gateway, which then stops the engine
                )
            except OSError as error:
                return Death(f"could not be started: {error}", time.monotonic())
            stdin.close()
            stdout.close()
            self._lifeline = lifeline
            os.set_blocking(output.fileno(), False)
            loop.add_reader(output, self._take_log, output)
            self._started()
            self._progress("loading vLLM")
            try:
                reason = await self._attend(process, EngineEndpoint(LOOPBACK, port, self._key))
            finally:
                await self._end(process)
                loop.remove_reader(output)
        died = time.monotonic()
        code = process.returncode
        reason = reason or f"{exit_words(code)} after {died - began:.0f} s"
        if words := enginelog.cause(list(self._last_lines)):
            reason += f": {words}"
        return Death(
            reason,
            died,
            ready_for=0.0 if self._ready_at is None else died - self._ready_at,
            final=code in (warden.NOT_FOUND, warden.NOT_EXECUTABLE),
        )

    async def _attend(self, process: Process, endpoint: EngineEndpoint) -> str:
        """Until the engine ended ("") or has to be ended (why)."""
        watch = asyncio.create_task(self._watch(endpoint))
        exited = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({watch, exited}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return ""
            self.kill()
            return watch.result()
        finally:
            watch.cancel()
            exited.cancel()
            await asyncio.wait({watch, exited})

    async def _watch(self, endpoint: EngineEndpoint) -> str:
        """Asks the engine how it is until it has to be ended; why."""
        rules, spec = self._rules, self._spec
        async with httpx2.AsyncClient(
            base_url=f"http://{endpoint.host}:{endpoint.port}",
            headers={"authorization": f"Bearer {endpoint.key.reveal()}"},
            timeout=rules.probe_timeout,
            limits=httpx2.Limits(max_keepalive_connections=0),  # an engine that closes an idle one is not ill
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # unused, and spares loading the system's certificates
            trust_env=False,
        ) as client:
            try:
                async with asyncio.timeout(spec.startup_timeout):
                    while not await _answers(client, spec.served_name):  # noqa: ASYNC110 - it sends us no event
                        await asyncio.sleep(rules.boot_poll)
            except TimeoutError:
                return f"was not ready within {spec.startup_timeout:g} s (engine.startup_timeout)"
            self._ready_at = time.monotonic()
            self._ready(endpoint)
            missed = 0
            while missed < rules.misses:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rules.poll):
                        await self._alarm.wait()
                self._alarm.clear()
                status = await _health(client)
                if status == _SAYS_IT_IS_DEAD:
                    return "said that its core is dead"
                missed = 0 if status == _HEALTHY else missed + 1
            return f"did not answer /health {missed} times in a row"

    def _take_log(self, output: FileIO) -> None:
        """A piece of the engine's output into our log.  An engine that writes faster than we read has to wait."""
        data = output.read(65_536)
        if data:
            self._log(self._lines.feed(data))
        elif data is not None:  # None: nothing to read after all
            self._log(self._lines.end())
            self._log_ended.set()
            asyncio.get_running_loop().remove_reader(output)

    def _log(self, lines: Sequence[enginelog.Line]) -> None:
        progress = None
        for line in lines:
            level = logging.DEBUG if line.passing else enginelog.level(line.text)
            output_logger.log(level, "%s", line.text, extra={"engine": self._spec.name})
            progress = enginelog.progress(line.text) or progress
            if enginelog.alarming(line.text):
                self._alarm.set()
            if not line.passing:
                self._last_lines.append(line.text)
        if progress is not None and self._ready_at is None:
            self._progress(progress)

    async def _end(self, process: Process) -> None:
        """Ends the process if it still runs: SIGTERM, and SIGKILL to all when that takes too long.  Its log is read
        meanwhile, because an engine whose output nobody reads cannot end."""
        exited = asyncio.create_task(process.wait())
        log_ended = asyncio.create_task(self._log_ended.wait())
        try:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait({exited}, timeout=self._spec.stop_timeout * _OUR_PATIENCE)
        finally:
            self.kill()
            await asyncio.wait({exited, log_ended}, timeout=_KILL_LIMIT)
            if process.returncode is None:
                logger.error("the kernel does not end the process", extra={"engine": self._spec.name})
            exited.cancel()
            log_ended.cancel()


@contextlib.contextmanager
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """The reading and the writing end of a pipe, closed at the latest when this ends."""
    readable, writable = os.pipe()
    with FileIO(readable, "r") as reading, FileIO(writable, "w") as writing:
        yield reading, writing


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port of loopback that no other program is given by chance until this ends.

    The socket that holds it never listens.  It and the engine's both set SO_REUSEADDR, which lets two sockets be bound
    to one port as long as none of them listens (socket(7)).
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((LOOPBACK, 0))
        yield holder.getsockname()[1]


def guarded(command: Sequence[str], stop_timeout: float) -> list[str]:
    """The command behind two wardens, which kill what has not ended in time."""
    guard = [sys.executable, "-I", "-S", warden.__file__]
    inner = [*guard, str(stop_timeout * _ENGINE_PATIENCE), *command]
    return [*guard, str(stop_timeout * _WARDEN_PATIENCE), *inner]


def exit_words(code: int | None) -> str:
    """What the exit code of a warden means.  Negative: it was killed itself."""
    if code is None or code < 0:
        return "lost its warden"
    if code - 128 in set(signal.Signals):
        return f"was killed by {signal.Signals(code - 128).name}"
    return f"ended with code {code}"


async def _health(client: httpx2.AsyncClient) -> int | None:
    """The status that it answers with; None: no answer."""
    try:
        return (await client.get("/health")).status_code
    except httpx2.HTTPError:
        return None


async def _answers(client: httpx2.AsyncClient, model: str) -> bool:
    """Whether an engine is ready and is ours: it takes our key and lists our model."""
    if await _health(client) != _HEALTHY:
        return False
    try:
        answer = await client.get("/v1/models")
        return answer.status_code == 200 and any(entry["id"] == model for entry in answer.json()["data"])
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return False
