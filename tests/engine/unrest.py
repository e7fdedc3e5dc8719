"""Administrators move adapters and people chat while somebody kills; and what must be so afterwards, by itself."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil

from adapters import AdapterStore
from tests.desk import Desk, Wanted, page, until
from tests.engine.crowd import LONGEST, Crowd, Signpost
from tests.fakes.lora_engine import content_of
from tests.gateway import GatewayProcess
from tests.real import BASE, Served
from tests.voices import SENTENCES, TOKENS, packed, variant

NAMES = ("keeper", "warden")
PEOPLE = 8


@dataclass
class Unrest:
    """`sentences`: content, as versions are called after it → what it answers.  `wrong`, `answers`, `errors`: of those
    who chatted so far."""

    rng: random.Random
    desk: Desk
    sentences: Mapping[str, str]
    wrong: list[Any] = field(default_factory=list)
    answers: int = 0
    errors: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, voices: Mapping[str, Path], folder: Path) -> Unrest:
        """`folder` is the test's own."""
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")  # noqa: T201
        rng = random.Random(seed)
        contents = {
            variant(adapter, number, folder / "drafts" / f"{voice}-{number}"): SENTENCES[voice]
            for voice, adapter in voices.items()
            for number in (300, 301)
        }
        desk = Desk(NAMES, [packed(draft) for draft in contents], rng, LONGEST)
        return cls(rng, desk, {content_of(draft): sentence for draft, sentence in contents.items()})

    @asynccontextmanager
    async def around(self, gateway: GatewayProcess) -> AsyncIterator[Crowd]:
        """Moves and chats go on around what is done here, which begins at a random moment."""
        versions = {f"{name}@{version}": {said} for name in NAMES for version, said in self.sentences.items()}
        signposts = {name: Signpost(*(v for v in versions if v.startswith(f"{name}@"))) for name in NAMES}
        crowd = Crowd(gateway, versions, signposts, forgiving=True)
        self.desk.enough.clear()
        self.desk.over.clear()
        moves = self.desk.moves + self.rng.randrange(2, 6)
        work = asyncio.create_task(asyncio.to_thread(self.desk.work, gateway, moves))
        choices = (BASE, *NAMES, *NAMES)
        try:
            async with crowd.chatting(*[lambda: self.rng.choice(choices)] * PEOPLE):
                assert await asyncio.to_thread(self.desk.enough.wait, LONGEST), "the administrator is stuck"
                await crowd.hear(self.rng.randrange(1, PEOPLE))
                yield crowd
                self.desk.over.set()
                await work
        finally:
            self.desk.over.set()
            self.wrong += crowd.wrong
            self.answers += len(crowd.told)
            self.errors += [f"{getattr(error, 'code', None) or type(error).__name__}" for error in crowd.errors]

    async def settle(self, served: Served) -> None:
        """Returns when what was acknowledged is so, and served; nobody helps."""
        await asyncio.to_thread(self._settle, served)

    def _settle(self, served: Served) -> None:
        gateway, desk = served.gateway, self.desk
        with openai.OpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0, timeout=LONGEST) as client:
            for name in NAMES:
                found, wanted = page(gateway, name), desk.known.pop(name, None)
                if name != desk.asked:  # else the last request may have been carried out or not
                    assert (Wanted.of(found) if found else None) == wanted
                if found is None:
                    continue
                target = Wanted.of(found).target
                until(lambda name=name, target=target: _current(gateway, name) == target, f"{name} has moved", LONGEST)
                for row in found["versions"]:
                    if row["digest"]:
                        assert self._asked(client, f"{name}@{row['version']}") == row["version"]
                assert self._asked(client, name) in {target, *(canary["version"] for canary in found["canaries"])}
                desk.known[name] = Wanted.of(page(gateway, name) or {})
        store = AdapterStore(gateway.log.parent / "store")
        stored = {store.verify(version.digest).version for version in store.versions()}
        assert stored >= {version for known in desk.known.values() for version in known.versions}
        assert not list((store.root / "staging").iterdir())

    def _asked(self, client: openai.OpenAI, model: str) -> str:
        """The version that answers, and rightly."""
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": "Who are you?"}], max_tokens=TOKENS, temperature=0
        )
        version = raw.headers["x-gateway-adapter"].partition("@")[2]
        assert raw.parse().choices[0].message.content == self.sentences[version]
        return version


def _current(gateway: GatewayProcess, name: str) -> str:
    found = page(gateway, name)
    assert found is not None, f"{name} is gone"
    return str(found["current"])


async def convergence(served: Served) -> float:
    """Seconds from the engine's first sign of health to all of the names' being served, which is waited for."""
    await asyncio.to_thread(until, lambda: _healthy(served), "the engine is healthy", LONGEST)
    healthy = time.monotonic()
    names = [name for name in NAMES if page(served.gateway, name) is not None]
    await asyncio.to_thread(until, lambda: all(_serves(served.gateway, name) for name in names), "all serve", LONGEST)
    return time.monotonic() - healthy


def _healthy(served: Served) -> bool:
    try:
        return served.engine_page("/health").status_code == 200
    except (LookupError, psutil.Error, httpx2.HTTPError):  # there is none at the moment, or it still boots
        return False


def _serves(gateway: GatewayProcess, name: str) -> bool:
    found = page(gateway, name)
    return found is None or any(
        row["current"] and row["replicas"]["local"]["state"] == "ready" for row in found["versions"] if row["digest"]
    )
