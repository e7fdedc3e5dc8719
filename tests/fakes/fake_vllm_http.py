"""vLLM's list of models and its LoRA endpoints, as a real HTTP server in the test's own loop, with a ledger of its own.

Bodies and codes are those of vLLM 0.32; tests/fakes/fake_vllm.py is the same as a process tree, for engines that are
run.  What an engine was asked, and in which order, is seen here.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.patience import LATE


class Fault(Enum):
    """What it does instead of answering."""

    HANG = "it never answers"
    CUT = "it hangs up, and did nothing"
    LOSE = "it does what it was asked, and hangs up"


#: Status and body, or what it does instead.
Said = tuple[int, Any] | Fault


class VLLM:
    """One engine that somebody else runs.

    `asked`: every load and unload, in order, as ("load", name); `probed`: the adapters that it computed with; `listed`:
    how often it was asked for its list; `most`: how many adapters it had at once.  `decoding`: the adapters that it
    computes with; a load beside `max_loras` of them, in a version with vllm#47724, answers somebody with another's
    adapter, and is counted in `mixed`.

    `refuses`: its worker's error for every load, when there is one.  `forgets`: so many loads that it claims and does
    not do; `keeps`: the same for unloads.  `blind`: it cannot see the gateway's files, but for what `hub` has.
    `poisoned`: it computes NaN with every adapter.  `status`: its answer to everything, when not 0.  `says`: path →
    an answer of the test's own, or several, each for one request.  `reached`: path → requests, answered or not.
    """

    def __init__(
        self, base: str = "base", root: str = "/models/base", key: str = "", version: str = "0.32.0", max_loras: int = 2
    ) -> None:
        self.base = base
        self.root = root
        self.key = key
        self.version = version
        self.max_loras = max_loras
        self.decoding: Counter[str] = Counter()
        self.mixed = 0
        self.adapters: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.probed: list[str] = []
        self.listed = 0
        self.most = 0
        self.refuses = ""
        self.forgets = 0
        self.keeps = 0
        self.blind = False
        self.hub: set[str] = set()
        self.poisoned = False
        self.status = 0
        self.says: dict[str, Said | list[Said]] = {}
        self.reached: Counter[str] = Counter()
        self._port = 0
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._happened = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def loads(self) -> list[str]:
        return [name for what, name in self.asked if what == "load"]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """On the port that it had; what was loaded before is forgotten, as vLLM does."""
        self.adapters.clear()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for client in tuple(self._clients):
                client.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def until(self, condition: Callable[[], bool], within: float = 3 * LATE) -> None:
        """Waits for a request after which the condition holds."""
        async with asyncio.timeout(within):
            while not condition():
                self._happened.clear()
                await self._happened.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.split("\r\n")[:-2]
        method, path, _ = start.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        self.reached[path] += 1
        self._happened.set()
        said = self.says.get(path)
        if isinstance(said, list):
            said = said.pop(0) if said else None
        answer: Any
        if said is Fault.HANG:
            await reader.read()  # until the other side has enough
            return False
        if said is Fault.CUT:
            return False
        if self.status:
            status, answer = self.status, error("The server is not what it was.", "InternalServerError", self.status)
        elif self.key and fields.get("authorization") != f"Bearer {self.key}":
            status, answer = 401, {"error": "Unauthorized"}
        elif isinstance(said, tuple):
            status, answer = said
        else:
            status, answer = self._answer(method, path, json.loads(body or b"{}"))
        if said is Fault.LOSE:
            self._happened.set()
            return False
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        kind = "text/plain" if isinstance(answer, str) else "application/json"
        writer.write(b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            status, kind.encode(), len(text), text
        ))  # fmt: skip
        await writer.drain()
        self._happened.set()
        return True

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        match method, path:
            case "GET", "/v1/models":
                return 200, self._models()
            case "GET", "/version":
                return 200, {"version": self.version}
            case "POST", "/v1/completions":
                return self._complete(body["model"])
            case "POST", "/v1/load_lora_adapter":
                assert set(body) == {"lora_name", "lora_path"}, "load_inplace must never be sent"
                self.asked.append(("load", body["lora_name"]))
                return self._load(body["lora_name"], body["lora_path"])
            case "POST", "/v1/unload_lora_adapter":
                self.asked.append(("unload", body["lora_name"]))
                if self.keeps and body["lora_name"] in self.adapters:
                    self.keeps -= 1
                elif self.adapters.pop(body["lora_name"], None) is None:
                    return 404, error(f"The lora adapter '{body['lora_name']}' cannot be found.", "NotFoundError", 404)
                return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        return 404, {"detail": "Not Found"}

    def _models(self) -> dict[str, Any]:
        self.listed += 1
        common = {"object": "model", "created": 1795461248 + self.listed, "owned_by": "vllm"}
        cards = [{"id": self.base, **common, "root": self.root, "parent": None, "max_model_len": 2048}]
        for name, path in self.adapters.items():
            cards.append({"id": name, **common, "root": path, "parent": self.base, "max_model_len": None})
        return {"object": "list", "data": cards}

    def _complete(self, model: str) -> tuple[int, Any]:
        self.probed.append(model)
        if model not in self.adapters:
            return 404, error(f"The model `{model}` does not exist.", "NotFoundError", 404)
        if self.poisoned:
            return 400, error("Out of range float values are not JSON compliant: nan", "BadRequestError", 400)
        logprobs = {"text_offset": [0], "token_logprobs": [-0.3], "tokens": [","], "top_logprobs": [{",": -0.3}]}
        choice = {"index": 0, "text": ",", "logprobs": logprobs, "finish_reason": "length", "stop_reason": None}
        usage = {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1}
        return 200, {"id": "cmpl-1", "object": "text_completion", "model": model, "choices": [choice], "usage": usage}

    def _load(self, name: str, path: str) -> tuple[int, Any]:
        if name in self.adapters:
            text = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, …"
            return 400, error(text, "InvalidUserInput", 400)
        seen = path in self.hub or (not self.blind and (Path(path) / "adapter_config.json").is_file())
        if not seen:
            return 404, error(f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError", 404)
        if self.refuses:
            cause = f"Worker failed with error '{self.refuses}'"
            text = f"Call to add_lora method failed: {cause}, please check the stack trace above for the root cause"
            return 500, error(text, "InternalServerError", 500)
        if self.version < "0.26.0" and len({*+self.decoding, name}) > self.max_loras:
            self.mixed += 1
        if self.forgets:
            self.forgets -= 1
        else:
            self.adapters[name] = path
            self.most = max(self.most, len(self.adapters))
        return 200, f"Success: LoRA adapter '{name}' added successfully."


def error(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
