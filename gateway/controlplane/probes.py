"""Asks each upstream, in the background, whether it is there and which models it has."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from gateway.backends.base import Discovery
from gateway.controlplane.contact import Contact, Slow, Unanswered
from gateway.controlplane.observed import UpstreamState
from gateway.domain.errors import GatewayError
from gateway.domain.listing import ListedModel
from gateway.domain.snapshot import Upstream

log = logging.getLogger("gateway.probes")

_ROUND = 30.0  # seconds for all requests of one round
_FAILURES = 2  # in a row, before an upstream counts as down: one lost packet must not take a model away
_SLOW_FAILURES = 6  # the same where it is only slow: under load an engine may answer requests and hardly a probe
_FIRST_RETRY = 1.0  # seconds after a failure; doubled with each further one
_SUSPICION_GAP = 0.25  # seconds between two rounds, however many requests complain
_MAX_MODELS = 5000  # of one upstream
_MAX_NAME = 256  # characters of a model's name


@dataclass(frozen=True, slots=True)
class Seen:
    """What the rounds so far have shown.  `models`: the last list that came, also while nothing answers.

    `version`: of its software, "" where it is not known.  `life`: another number is perhaps another process, because it
    was down in between, or has another address or version; what the one before it had says nothing then.
    """

    state: UpstreamState = UpstreamState.STARTING
    message: str = ""
    models: tuple[ListedModel, ...] = ()
    version: str = ""
    life: int = 0


class NoList(Exception):
    """It answers, but not with a list of models.  The text says why and what to do."""


class Probe:
    """Watches one upstream: never two rounds at once, at once when asked, otherwise every `interval` seconds.  After
    failures there are never more than `retry` seconds between two.

    `changed` is called when `seen` has changed; `jitter` gives a factor around 1 that keeps many probes apart;
    `identify` asks for the version of its software, and is "" where it gives none.
    """

    def __init__(
        self,
        name: str,
        discover: Callable[[Upstream], Discovery],
        interval: float,
        *,
        changed: Callable[[], None],
        jitter: Callable[[], float],
        identify: Callable[[Contact, Upstream], Awaitable[str]] | None = None,
        retry: float = math.inf,
    ) -> None:
        self.name = name
        self.seen = Seen()
        self._discover = discover
        self._interval = interval
        self._retry = min(retry, interval)
        self._changed = changed
        self._jitter = jitter
        self._identify = identify
        self._upstream: Upstream | None = None
        self._failures = 0
        self._due = 0.0  # the loop's clock, like all of these: when the next round is that nobody asks for
        self._wanted = math.inf  # when the next round is that somebody asks for
        self._looked = -_SUSPICION_GAP  # when the last round began or ended
        self._wake = asyncio.Event()
        self._awaited: list[asyncio.Future[None]] = []

    def retarget(self, upstream: Upstream | None) -> None:
        """Where to ask from now on; None: nowhere.  A new address is a new start: what the old one had is kept only
        as what may come back."""
        if upstream == self._upstream:
            return
        self._upstream = upstream
        self._failures = 0
        self._due = 0.0
        self._see(replace(self.seen, state=UpstreamState.STARTING, message="", version="", life=self.seen.life + 1))
        self._release()
        self._wake.set()

    def suspect(self) -> None:
        """Somebody saw it fail: a round at once, or as soon as the gap allows."""
        self._wanted = min(self._wanted, self._looked + _SUSPICION_GAP)
        self._wake.set()

    async def refresh(self) -> bool:
        """Waits for a round that begins after this call.  True: the upstream is up and `seen` is as new as that."""
        if self._upstream is None:
            return False
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.append(done)
        self._wanted = 0.0
        self._wake.set()
        await done
        return self.seen.state is UpstreamState.UP and self._failures == 0

    async def run(self) -> None:
        """Asks until it is cancelled."""
        try:
            while True:
                upstream = self._upstream
                if upstream is None:
                    await self._sleep(None)
                    continue
                async with Contact(upstream) as contact:
                    while upstream is self._upstream:
                        if (wait := min(self._due, self._wanted) - asyncio.get_running_loop().time()) > 0:
                            await self._sleep(wait)
                        else:
                            await self._round(contact, upstream)
        finally:
            self._release()

    async def _sleep(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _round(self, contact: Contact, upstream: Upstream) -> None:
        # Whoever asks from here on asks for another round.
        awaited, self._awaited = self._awaited, []
        self._wanted = math.inf
        self._looked = asyncio.get_running_loop().time()
        try:
            seen, patience = await self._ask(contact, upstream)
            if upstream is self._upstream:
                self._conclude(seen, patience)
        finally:
            self._looked = asyncio.get_running_loop().time()
            _resolve(awaited)

    def _conclude(self, seen: Seen, patience: int) -> None:
        failed = patience > 0
        self._failures = self._failures + 1 if failed else 0
        delay = min(self._retry, _FIRST_RETRY * 2 ** min(self._failures - 1, 10)) if failed else self._interval
        self._due = asyncio.get_running_loop().time() + delay * self._jitter()
        if self._failures < patience and self.seen.state is not UpstreamState.DOWN:
            log.info("upstream %s failed a probe: %s", self.name, seen.message)
        else:
            self._see(_counted(self.seen, seen))

    async def _ask(self, contact: Contact, upstream: Upstream) -> tuple[Seen, int]:
        """One round: what was seen, and how many of its kind in a row count; 0: it is no failure."""
        try:
            async with asyncio.timeout(_ROUND):
                models = _steady(self.seen.models, await models_of(contact, self._discover(upstream)))
                told = "" if self._identify is None else await self._identify(contact, upstream)
        except TimeoutError:
            return self._down(f"its list of models took more than {_ROUND:g} s"), _SLOW_FAILURES
        except Slow as error:
            return self._down(str(error)), _SLOW_FAILURES
        except Unanswered as error:
            return self._down(str(error)), _FAILURES
        except NoList as error:
            # It lives; whether it serves, the next request shows.
            return replace(self.seen, state=UpstreamState.UP, message=str(error)), 0
        return replace(
            self.seen, state=UpstreamState.UP, message="", models=models, version=told or self.seen.version
        ), 0

    def _down(self, message: str) -> Seen:
        return replace(self.seen, state=UpstreamState.DOWN, message=message)

    def _see(self, seen: Seen) -> None:
        before, self.seen = self.seen, seen
        if seen == before:
            return
        if (seen.state, seen.message) != (before.state, before.message):
            level = logging.INFO if seen.state is not UpstreamState.DOWN and not seen.message else logging.WARNING
            log.log(level, "upstream %s is %s%s", self.name, seen.state, f": {seen.message}" if seen.message else "")
        self._changed()

    def _release(self) -> None:
        awaited, self._awaited = self._awaited, []
        _resolve(awaited)


async def models_of(contact: Contact, discovery: Discovery) -> tuple[ListedModel, ...]:
    """Lets the dialect ask.  Only the first request decides whether the upstream is there; the dialect copes with the
    loss of a later one.  Raises Unanswered, NoList."""
    answer: bytes | None = None
    first = True
    try:
        ask = next(discovery)
        while True:
            try:
                reply = await contact.request("GET" if ask.body is None else "POST", ask.path, ask.body)
            except Unanswered:
                if first:
                    raise
                answer = None
            else:
                if first and reply.status != 200:
                    raise _refusal(reply.status, ask.path)
                answer = reply.body if reply.status == 200 else None
            first = False
            ask = discovery.send(answer)
    except StopIteration as end:
        models: tuple[ListedModel, ...] = end.value
        return models
    except (ValueError, GatewayError) as error:
        raise NoList(f"its list of models cannot be read: {error}") from error
    finally:
        discovery.close()


def _counted(before: Seen, now: Seen) -> Seen:
    """With the number of its life, and without what is known of the one before."""
    if now.state is UpstreamState.DOWN and before.state is not UpstreamState.DOWN:
        return replace(now, version="", life=before.life + 1)
    return replace(now, life=before.life + 1) if "" != before.version != now.version else now


def _refusal(status: int, path: str) -> Exception:
    place = path.partition("?")[0]
    if status >= 500:
        return Unanswered(f"it answers {status} to {place}")
    if status in (401, 403):
        return NoList(f"it answers {status} to {place}: mend its api_key")
    if status == 404:
        return NoList(f"it has no {place}: mend its base_url, or name its models in `models`")
    return NoList(f"it answers {status} to {place}")


def _steady(before: Iterable[ListedModel], now: Iterable[ListedModel]) -> tuple[ListedModel, ...]:
    """The new list, bounded, with the first `created` that each model had: vLLM gives the time of the request, and a
    list that differs in nothing else is no change.  The first of equal names counts."""
    created = {model.id: model.created for model in before}
    unique: dict[str, ListedModel] = {}
    for model in now:
        if len(model.id) <= _MAX_NAME and model.id.isprintable() and len(unique) < _MAX_MODELS:
            unique.setdefault(model.id, replace(model, created=created.get(model.id, model.created)))
    return tuple(unique.values())


def _resolve(awaited: Iterable[asyncio.Future[None]]) -> None:
    for future in awaited:
        if not future.done():
            future.set_result(None)
