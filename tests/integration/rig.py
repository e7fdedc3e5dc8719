"""A gateway over scripted upstreams, and the oracle that must hold at the end of every test on it.

The oracle is what a user, an operator or an accountant would notice: each request is accounted for exactly once, the
metrics and the access log agree, the upstreams saw as many attempts as the gateway says, nothing is left in flight, no
task is left over, and no key and no prompt stands in a log line, a metric or an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.gateway import running_gateway, sample
from tests.patience import LATE
from tests.wire import Reply

#: Canaries: they must turn up nowhere but where they belong.
CLIENT_KEY = "gw-6f0c2a9e71d84b35a0c4canaryclient"
ADMIN_KEY = "gw-b83d5517e02f4c96-canary-admin-91"
PROMPT = "the canary sings 4417-quokka"

_LOGGERS = ("gateway", "uvicorn", "asyncio")
_STANDARD = frozenset(vars(logging.makeLogRecord({})))


def provider_key(upstream: str) -> str:
    """The key that the gateway has for an upstream.  It has no prefix by which anyone would know it for a key."""
    return f"Zq8{upstream}W4tX0canaryprovider77"


@dataclass(frozen=True, slots=True)
class Settled:
    """A request's line in the access log."""

    request_id: str
    model: str
    upstream: str
    status: int
    reason: str
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    duration_ms: float


class _Ear(logging.Handler):
    """Hears everything that is logged, at every level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self.settled: list[Settled] = []
        self.heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if record.name == "gateway.access":
            self.settled.append(Settled(**{name: getattr(record, name) for name in Settled.__slots__}))
        self.heard.set()

    def text(self) -> str:
        """Everything that any formatter could write."""
        formatter = logging.Formatter()
        extras = [
            {name: value for name, value in vars(record).items() if name not in _STANDARD} for record in self.records
        ]
        return "\n".join(
            f"{formatter.format(record)} {extra!r}" for record, extra in zip(self.records, extras, strict=True)
        )


class Stream:
    """A stream that is being read.  Every wait is bounded."""

    def __init__(self, client: wire.Wire) -> None:
        self._client = client

    async def chunk(self, within: float = LATE) -> bytes | None:
        """The next chunk; b"" for the terminating one, None when the connection ended without it."""
        async with asyncio.timeout(within):
            return await self._client.chunk()

    async def ending(self) -> bool:
        """Reads on; whether the stream ended with `[DONE]` and in order."""
        rest = b""
        while data := await self.chunk():
            rest += data
        return data == b"" and rest.endswith(b"data: [DONE]\n\n")


class Rig:
    """A running gateway and what it did."""

    def __init__(self, url: str, ear: _Ear) -> None:
        self.url = url
        self.replies: list[Reply] = []
        self._ear = ear

    async def chat(self, model: str = "m", *, stream: bool = True, within: float = 3 * LATE, **more: Any) -> Reply:
        """One chat request; `more` goes into its body."""
        return await self.post(chat(model, stream=stream, **more), within=within)

    async def post(
        self,
        body: Any,
        path: str = "/v1/chat/completions",
        headers: Iterable[tuple[str, str]] = (),
        within: float = 3 * LATE,
    ) -> Reply:
        reply = await wire.post(self.url, path, body, (*AUTH, *headers), within)
        self.replies.append(reply)
        return reply

    async def settled(self, reply: Reply | None = None, within: float = LATE) -> Settled:
        """The request's one line in the access log: that of the reply, or the only one there is."""
        async with asyncio.timeout(within):
            while True:
                lines = self._ear.settled
                if reply is not None:
                    lines = [line for line in lines if line.request_id == reply.header("x-request-id")]
                if lines:
                    (line,) = lines
                    return line
                self._ear.heard.clear()
                await self._ear.heard.wait()

    def lines(self) -> list[Settled]:
        """The access log so far."""
        return list(self._ear.settled)

    async def _metrics_page(self) -> str:
        page = await wire.get(self.url, "/metrics", [("authorization", f"Bearer {ADMIN_KEY}")])
        assert page.status == 200, page
        return page.body.decode()

    async def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Sample name → sorted labels → value."""
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(await self._metrics_page()):
            for one in family.samples:
                found.setdefault(one.name, {})[tuple(sorted(one.labels.items()))] = one.value
        return found

    async def total(self, name: str, **labels: str) -> float:
        """The sum over the samples with these labels."""
        return sample(await self._metrics_page(), name, **labels)

    async def reaches(self, gauge: str, value: float, within: float = LATE) -> None:
        """Returns when a gauge has this value over all its labels."""
        async with asyncio.timeout(within):
            while await self.total(gauge) != value:
                await asyncio.sleep(0.01)  # a gauge has no event to wait for

    async def get(self, path: str) -> Reply:
        return await wire.get(self.url, path, AUTH)

    @asynccontextmanager
    async def asking(self, model: str = "m", *, stream: bool = True, **more: Any) -> AsyncIterator[wire.Wire]:
        """A client that has sent its request, and leaves at the end if it has not before."""
        async with wire.connected(self.url) as client:
            await client.post("/v1/chat/completions", chat(model, stream=stream, **more), AUTH)
            yield client

    @asynccontextmanager
    async def streaming(self, model: str = "m") -> AsyncIterator[Stream]:
        """A stream, chunk by chunk."""
        async with self.asking(model) as client:
            status, _ = await client.head()
            assert status == 200
            yield Stream(client)

    async def quiet(self, within: float = LATE) -> None:
        """Returns when no request holds a place or waits for one, and every one that was admitted is settled."""
        async with asyncio.timeout(within):
            await self.reaches("gateway_requests_waiting", 0)
            await self.reaches("gateway_requests_in_flight", 0)


AUTH = (("authorization", f"Bearer {CLIENT_KEY}"),)


def chat(model: str = "m", *, stream: bool = True, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": stream, **more}


def route(model: str, *targets: tuple[str, str]) -> dict[str, Any]:
    """An entry of `models`: a public name and its (upstream, model) in order."""
    return {"id": model, "targets": [{"upstream": upstream, "model": name} for upstream, name in targets]}


def configuration(
    upstreams: Mapping[str, OpenAIUpstream | str],
    *,
    timeouts: Mapping[str, float] | None = None,
    concurrency: Mapping[str, float] | None = None,
    models: Iterable[Mapping[str, Any]] = (),
    kind: str = "openai",
    server: Mapping[str, Any] | None = None,
    poll_interval: float = 3600,
    log_format: str = "json",
) -> dict[str, Any]:
    """A configuration over these upstreams (or base URLs), each with a key of its own.  Where there are several, the
    models of each are also offered under its name: `first/m`."""
    return {
        "server": {"port": 0, **(server or {})},
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"name": "tester", "key": CLIENT_KEY}]},
        "log": {"level": "debug", "format": log_format},
        "timeouts": dict(timeouts or {}),
        "upstreams": [
            {
                "name": name,
                "kind": kind,
                "base_url": place if isinstance(place, str) else place.url,
                "api_key": provider_key(name),
                # What is offered is said here, so that no test depends on when an upstream was last asked.
                "models": ["m"] if isinstance(place, str) else list(place.models),
                "poll_interval": poll_interval,
                "prefix": f"{name}/" if len(upstreams) > 1 else "",
                "concurrency": dict(concurrency or {}),
            }
            for name, place in upstreams.items()
        ],
        "models": [dict(model) for model in models],
    }


@asynccontextmanager
async def rig(
    folder: Path,
    upstreams: Mapping[str, OpenAIUpstream | str],
    *,
    hops: bool = True,
    wait: bool = True,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """A gateway with `configuration(upstreams, **settings)`, ready to serve (`wait`).  `hops` false: the upstreams may
    have seen more attempts than the gateway counts, because connections died under requests."""
    before = asyncio.all_tasks()
    async with running_gateway(configuration(upstreams, **settings), folder, wait=wait) as gateway:
        ear = _Ear()
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(ear)
            logger.setLevel(logging.DEBUG)
        try:
            running = Rig(gateway.url, ear)
            yield running
            await _check_accounts(running, upstreams, hops)
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(ear)
                logger.setLevel(level)
    check_secrets(running, ear.text())
    broken = [record for record in ear.records if record.levelno >= logging.ERROR]
    assert not broken, [record.getMessage() for record in broken]
    await _check_tasks(before)


async def _check_accounts(running: Rig, upstreams: Mapping[str, OpenAIUpstream | str], hops: bool) -> None:
    await running.quiet()
    lines = running.lines()
    twice = [name for name, count in Counter(line.request_id for line in lines).items() if count > 1]
    assert not twice, twice
    metrics = await running.metrics()
    counted = Counter(
        {
            tuple(dict(key)[name] for name in ("model", "upstream", "status", "reason")): round(value)
            for key, value in metrics.get("gateway_requests_total", {}).items()
        }
    )
    assert counted == Counter((line.model, line.upstream, str(line.status), line.reason) for line in lines)
    if hops:
        unseen = sum(
            value
            for name, label, words in (
                ("gateway_attempts_total", "reason", ("upstream_connect", "limit")),
                ("gateway_cancellations_total", "phase", ("connect", "queue")),
            )
            for key, value in metrics.get(name, {}).items()
            if dict(key)[label] in words
        )
        arrived = sum(len(place.ledger) for place in upstreams.values() if isinstance(place, OpenAIUpstream))
        assert sum(line.attempts for line in lines) - unseen == arrived


def check_secrets(running: Rig, logged: str) -> None:
    """No key and no prompt in the logs, no key in an answer."""
    keys = (CLIENT_KEY, ADMIN_KEY, "canaryprovider")
    for secret in (*keys, PROMPT):
        assert secret not in logged, next(line for line in logged.splitlines() if secret in line)
    for reply in running.replies:
        assert not any(key in f"{reply.headers} {reply.body!r}" for key in keys), reply


async def _check_tasks(before: set[asyncio.Task[Any]]) -> None:
    """What the gateway started has ended with it; an upstream's side of a closed connection gets a moment to."""
    mine = asyncio.current_task()
    left = {task for task in asyncio.all_tasks() - before if task is not mine}
    if left:
        _, pending = await asyncio.wait(left, timeout=LATE)
        assert not pending, pending
