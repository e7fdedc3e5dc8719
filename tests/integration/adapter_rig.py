"""A gateway before engines whose every word tells its weights, people who chat through it, and one who moves names.

Adapters are put on the shelf before the gateway starts: in its store and in its storage, as if it had taken them up
before.  Each content has a number; `Shelf.version` says what it is called.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adapters import AdapterStore, BaseModel
from gateway.controlplane.desired import AdapterRecord, VersionRecord, added
from gateway.controlplane.records import Records
from gateway.controlplane.registry import fingerprint
from gateway.controlplane.storage import Storage
from tests.fakes.adapter_corpus import TINY, Craft, factor, write_base
from tests.fakes.lora_engine import FILES, LoraEngine
from tests.gateway import ADMIN_KEY, CLIENT_KEY, Running, running_gateway
from tests.patience import LATE
from tests.wire import Reply, Wire, connected

_MODULE = "model.layers.0.self_attn.q_proj"
_AT_ONCE = 8  # contents that are put into the store


class Shelf:
    """A base model and contents of adapters that fit it, the same ones for the same numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = write_base(folder / "base", weights=False)
        self.fits = fingerprint(BaseModel.read(self.base))
        self._craft = Craft(TINY)
        self._craft.keep(_MODULE)
        self._craft.config["target_modules"] = ["q_proj"]
        self._versions: dict[int, str] = {}

    def write(self, number: int) -> Path:
        """The content's files."""
        folder = self.folder / "drafts" / str(number)
        if not folder.exists():
            self._craft.poke(factor(_MODULE, "A"), 1.0 + number / 1024, index=0)
            self._craft.write(folder)
        return folder

    def version(self, number: int) -> str:
        """What the content is called, worked out as coreutils would."""
        if number not in self._versions:
            folder = self.write(number)
            sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES)
            self._versions[number] = hashlib.sha256("".join(sums).encode()).hexdigest()[:12]
        return self._versions[number]

    def archive(self, number: int) -> bytes:
        """The content as a tar."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(self.write(number), "adapter")
        return packed.getvalue()

    async def stock(self, adapters: Mapping[str, Sequence[int]]) -> None:
        """The gateway that starts in this folder has these adapters (name → contents, the oldest first and current)."""
        store = await asyncio.to_thread(AdapterStore.open, self.folder / "store")
        numbers = sorted({number for contents in adapters.values() for number in contents})
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            loop = asyncio.get_running_loop()
            stored = await asyncio.gather(
                *(loop.run_in_executor(threads, store.add, self.write(number)) for number in numbers)
            )
        digests = {number: one.digest for number, one in zip(numbers, stored, strict=True)}
        storage = await Storage.open(f"sqlite:///{self.folder}/gateway.db")
        records = Records(storage)
        await records.load()
        for name, contents in adapters.items():
            record: AdapterRecord | None = None
            for number in contents:
                version = VersionRecord(digests[number], "upload", False, TINY.name, 8, 32768, (self.fits,), 1795461248)
                record = added(record, name, version, promote=False, keep=100)
            if record is not None:
                await records.save(record)
        await storage.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody was told.  `words`: what each of them was computed with; `adapter`, `upstream`: what the headers
    say of it."""

    status: int
    model: str
    words: tuple[str, ...]
    adapter: str | None
    upstream: str | None
    problem: str = ""

    @property
    def whole(self) -> bool:
        """Whether it was computed with the one version that it names, and is all there."""
        return not self.problem and self.adapter is not None and {*self.words} == {self.adapter.partition("@")[2]}


class Caller:
    """Somebody with a connection and a key."""

    def __init__(self, wire: Wire, key: str) -> None:
        self._wire = wire
        self._key = ("authorization", f"Bearer {key}")

    async def call(self, method: str, path: str, body: Any = None, headers: Iterable[tuple[str, str]] = ()) -> Reply:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        await self._wire.request(method, path, data, (self._key, ("content-type", "application/json"), *headers))
        return await self._wire.reply()

    async def ask(
        self,
        model: str,
        words: int = 4,
        *,
        stream: bool = True,
        headers: Iterable[tuple[str, str]] = (),
        within: float = 6 * LATE,
        **more: Any,
    ) -> Answer:
        """A chat.  It must be answered in order."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": words, **more}
        async with asyncio.timeout(within):
            reply = await self.call("POST", "/v1/chat/completions", {**body, "stream": stream}, headers)
        return _answer(reply, model, words, stream)


def _answer(reply: Reply, model: str, words: int, stream: bool) -> Answer:
    where = reply.header("x-gateway-adapter"), reply.header("x-gateway-upstream")
    if reply.status != 200:
        return Answer(reply.status, model, (), *where, problem=reply.body.decode())
    if stream:
        said = tuple(reply.text.split())
        problem = "" if reply.complete and reply.done else f"cut: {reply.body[-200:]!r}"
        models = {chunk["model"] for chunk in reply.chunks}
    else:
        said, problem = tuple(reply.json["choices"][0]["message"]["content"].split()), ""
        models = {reply.json["model"]}
    if not problem and (len(said) != words or models != {model}):
        problem = f"{len(said)} words instead of {words}, from {models}"
    return Answer(reply.status, model, said, *where, problem=problem)


class Mover(Caller):
    """An administrator, who hears of nothing but success."""

    async def _done(self, method: str, path: str, body: Any = None) -> Any:
        reply = await self.call(method, f"/admin/v1/adapters{path}", body)
        assert reply.status in (200, 202), (path, reply)
        return reply.json

    async def promote(self, name: str, version: str) -> None:
        """The name points there when this returns."""
        page = await self._done("POST", f"/{name}/promote", {"version": version})
        assert (page["current"], page["next"]) == (version, None), page

    async def rollback(self, name: str) -> str:
        """What the name points to when this returns."""
        page = await self._done("POST", f"/{name}/rollback")
        assert page["next"] is None, page
        return str(page["current"])

    async def canary(self, name: str, version: str, weight: float) -> None:
        page = await self._done("POST", f"/{name}/canary", {"version": version, "weight": weight})
        assert (version, weight) in {(c["version"], c["weight"]) for c in page["canaries"]} or not weight, page

    async def load(self, name: str, version: str) -> None:
        await self._done("POST", f"/{name}/load", {"version": version})

    async def unload(self, name: str, version: str) -> None:
        await self._done("POST", f"/{name}/unload", {"version": version})

    async def remove(self, name: str, version: str | None = None) -> None:
        await self._done("DELETE", f"/{name}" if version is None else f"/{name}/versions/{version}")

    async def show(self, name: str) -> Any:
        return await self._done("GET", f"/{name}")

    async def add(self, name: str, archive: bytes, within: float = 6 * LATE) -> str:
        """The version, when it is Ready."""
        one = await self._done("PUT", f"/{name}/archive", archive)
        async with asyncio.timeout(within):
            while one["phase"] not in ("Ready", "Failed"):
                await asyncio.sleep(0.02)  # an import is looked at, as every client does
                one = (await self.call("GET", f"/admin/v1/imports/{one['id']}")).json
        assert one["phase"] == "Ready", one
        return str(one["version"])


class Town:
    """A running gateway and its engines."""

    def __init__(self, gateway: Running, engines: Sequence[LoraEngine], stack: AsyncExitStack) -> None:
        self.gateway = gateway
        self.engines = engines
        self._stack = stack

    async def caller(self, key: str = CLIENT_KEY) -> Caller:
        return Caller(await self._stack.enter_async_context(connected(self.gateway.url)), key)

    async def callers(self, count: int) -> list[Caller]:
        return [await self.caller() for _ in range(count)]

    async def mover(self) -> Mover:
        return Mover(await self._stack.enter_async_context(connected(self.gateway.url)), ADMIN_KEY)

    def sound(self) -> Self:
        """Nobody did what an engine cannot bear."""
        for engine in self.engines:
            assert engine.violations == []
            assert engine.put_off == 0, "more adapters at once than it computes with"
            assert engine.most_adapters <= engine.max_loras
            assert len(engine.adapters) <= engine.max_cpu_loras
        return self


@asynccontextmanager
async def town(
    shelf: Shelf,
    *engines: LoraEngine,
    adapters: Mapping[str, Any] = {},
    concurrency: Mapping[str, Any] = {},
    keys: Sequence[Mapping[str, Any]] = (),
) -> AsyncIterator[Town]:
    """A gateway attached to these engines, in the shelf's folder; ready when it answers for the base model."""
    config = {
        "auth": {"admin_key": ADMIN_KEY, "keys": [{"name": "tester", "key": CLIENT_KEY}, *keys]},
        "log": {"level": "warning"},
        "timeouts": {"connect": LATE},  # all of the town are in one loop
        "adapters": {"store": str(shelf.folder / "store"), **adapters},
        "upstreams": [
            {
                "name": f"box-{number}",
                "kind": "vllm",
                "base_url": engine.url,
                "concurrency": dict(concurrency),
                "adapters": {"max_loras": engine.max_loras, "max_cpu_loras": engine.max_cpu_loras},
            }
            for number, engine in enumerate(engines)
        ],
    }
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running_gateway(config, shelf.folder))
        callers = await stack.enter_async_context(AsyncExitStack())
        yield Town(gateway, engines, callers)
