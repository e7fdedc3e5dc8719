"""People who chat through the official SDK, all at once and again and again, and what each of them was told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import httpx2
import openai

from tests.gateway import ADMIN_KEY, Running
from tests.integration.adapter_rig import Caller, Mover
from tests.real import BASE
from tests.voices import PREFIX, QUESTIONS, TOKENS
from tests.wire import Reply, connected

LONGEST = 300.0  # seconds that anything may take on a machine that is five times slower


class Registrar(Mover):
    """An administrator who comes in for each move anew: there may be a minute between two."""

    def __init__(self, gateway: Running) -> None:
        self._url = gateway.url

    async def call(self, method: str, path: str, body: Any = None, headers: Iterable[tuple[str, str]] = ()) -> Reply:
        async with asyncio.timeout(LONGEST), connected(self._url) as wire:
            return await Caller(wire, ADMIN_KEY).call(method, path, body, headers)

    async def bring(self, name: str, version: str) -> None:
        """The name points there when this returns: a version that gave way to others is loaded first."""
        await self._done("POST", f"/{name}/promote", {"version": version})
        async with asyncio.timeout(LONGEST):
            while (await self.show(name))["current"] != version:
                await asyncio.sleep(0.1)  # the page is looked at, as every client does

    async def rows(self) -> list[dict[str, Any]]:
        """Every version of every adapter."""
        rows: list[dict[str, Any]] = (await self._done("GET", ""))["data"]
        return rows


class Signpost:
    """Where a name leads to, as the one who turns it knows."""

    def __init__(self, *versions: str) -> None:
        self._ways = [frozenset(versions)]
        self.settled = 0  # how often it was turned, and that was over

    @contextmanager
    def turning(self, *versions: str) -> Iterator[None]:
        """It may lead there from now on, and leads nowhere else when this ends."""
        self._ways.append(frozenset(versions))
        yield
        self.settled = len(self._ways) - 1

    def since(self, moment: int) -> tuple[frozenset[str], ...]:
        """Where it led, one after the other, since it had been turned so often."""
        return tuple(self._ways[moment:])


@dataclass(frozen=True, slots=True)
class Told:
    """An answer.  `adapter`, `upstream`: what it says of itself; `asked`: how often the name had been turned before;
    `ways`: where the name led from then until the answer began; `seconds`: from the question to the last word."""

    model: str
    user: str
    text: str
    adapter: str | None
    upstream: str | None
    asked: int
    ways: tuple[frozenset[str], ...]
    seconds: float


@dataclass
class Crowd:
    """Who chats at the moment, and all that they were told.

    `sentences`: what each version (`name@version`) answers with; `signposts`: of the names that they ask for;
    `streams`: every second one streams.  `errors`: what they were told where they are `forgiving`; else an error ends
    the test.
    """

    gateway: Running
    sentences: Mapping[str, Collection[str]]
    signposts: Mapping[str, Signpost]
    streams: bool = True
    forgiving: bool = False
    told: list[Told] = field(default_factory=list)
    errors: list[openai.OpenAIError | httpx2.HTTPError] = field(default_factory=list)
    _over: bool = False
    _heard: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def chatting(self, *people: Callable[[], str]) -> AsyncIterator[None]:
        """Each of these people chats, and chooses a model for each question."""
        async with asyncio.TaskGroup() as group:
            for number, chooses in enumerate(people):
                group.create_task(self._chat(number, chooses))
            yield
            self._over = True

    async def hear(self, answers: int) -> None:
        """Returns when so many more of them were answered."""
        goal = len(self.told) + answers
        async with asyncio.timeout(LONGEST), self._heard:
            await self._heard.wait_for(lambda: len(self.told) >= goal)

    @property
    def wrong(self) -> list[Told]:
        """Whom the name did not lead to what answered, or whose answer is not that version's, whole."""
        return [told for told in self.told if not self._is_right(told)]

    def _is_right(self, told: Told) -> bool:
        if told.model == BASE:
            others = {sentence for sentences in self.sentences.values() for sentence in sentences}
            return told.adapter is None and bool(told.text.strip()) and told.text not in others
        if told.adapter is None or not any(told.adapter in way for way in told.ways):
            return False
        return told.text in self.sentences[told.adapter]

    async def _chat(self, number: int, chooses: Callable[[], str]) -> None:
        async with openai.AsyncOpenAI(
            base_url=self.gateway.v1, api_key=self.gateway.key, max_retries=0, timeout=LONGEST
        ) as client:
            for question in islice(cycle(QUESTIONS), number, None):
                user = f"reader {number} about {'this' if question in QUESTIONS[::2] else 'that'}"
                if self._over:
                    break
                try:
                    told = await self._ask(client, chooses(), question, user, stream=self.streams and bool(number % 2))
                except (openai.OpenAIError, httpx2.HTTPError) as error:
                    if not self.forgiving:
                        raise
                    self.errors.append(error)
                    await asyncio.sleep(0.2)  # as the SDK would, before it asks again
                else:
                    async with self._heard:
                        self.told.append(told)
                        self._heard.notify_all()

    async def _ask(self, client: openai.AsyncOpenAI, model: str, question: str, user: str, *, stream: bool) -> Told:
        signpost = self.signposts.get(model, _NOWHERE)
        began, asked = time.monotonic(), signpost.settled
        answer = await client.chat.completions.with_raw_response.create(
            model=model, stream=stream, user=user, max_tokens=TOKENS, temperature=0,
            messages=[{"role": "system", "content": PREFIX}, {"role": "user", "content": question}],
        )  # fmt: skip
        ways = signpost.since(asked)
        if stream:
            choices = [choice async for chunk in answer.parse() for choice in chunk.choices]
            text = "".join(choice.delta.content or "" for choice in choices)
        else:
            (choice,) = answer.parse().choices
            text = choice.message.content
        adapter, upstream = (answer.headers.get(f"x-gateway-{what}") for what in ("adapter", "upstream"))
        return Told(model, user, text.strip(), adapter, upstream, asked, ways, time.monotonic() - began)


_NOWHERE = Signpost()
