"""A real server on loopback that speaks Ollama's native API, as fair as its source lets one be (ollama_dialect.py).

It answers inference and the questions about models, and records what would change the server: pull, push, create,
copy, delete, blobs and the account.  `cuts` says of each chat or completion how many tokens of its prompt were cut.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.fakes import ollama_binding as binding
from tests.fakes import ollama_dialect as dialect
from tests.fakes.ollama_binding import Failed
from tests.fakes.ollama_dialect import Model
from tests.fakes.upstream import Behaviour, Exchange, Upstream

VERSION = "0.34.1"
_MODIFIED = "2026-08-04T17:37:44.706015396-07:00"
_STRUCTS = {"/api/chat": "ChatRequest", "/api/generate": "GenerateRequest", "/api/embed": "EmbedRequest"}
_NDJSON = (("content-type", "application/x-ndjson"), ("transfer-encoding", "chunked"))

#: What changes the server or speaks for its owner (routes.go, GenerateRoutes).
MANAGEMENT = (
    ("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"),
    ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:0"), ("HEAD", "/api/blobs/sha256:0"), ("POST", "/api/me"),
    ("POST", "/api/signout"), ("DELETE", "/api/user/keys/0"), ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pace:
    """How a model's answers go over the wire: seconds before each object, bytes a chunk (0: an object a chunk), and
    what goes wrong after so many objects (before the first byte where the answer comes whole).  `on_demand`: each word
    of a stream waits until the test releases the attempt's `wanted`.  `instead`: what comes in place of any answer."""

    itl: float = 0.0
    on_demand: bool = False
    slices: int = 0
    after: int = 0
    fault: Behaviour | None = None
    instead: Behaviour | None = None


class OllamaServer(Upstream):
    """The server.  `models`: full name (with its tag) → model.  `terse`: it is a version whose list of models does not
    say what each can do."""

    def __init__(
        self, models: Mapping[str, Model], *, paces: Mapping[str, Pace] | None = None, terse: bool = False
    ) -> None:
        super().__init__()
        self.models = dict(models)
        self.paces = dict(paces or {})
        self.terse = terse
        self.touched: list[tuple[str, str]] = []
        self.cuts: list[int] = []
        self.loaded: dict[str, tuple[datetime, int]] = {}  # until when, with which context

    @property
    def url(self) -> str:
        """The base URL that goes into a configuration, and into OLLAMA_HOST."""
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, exchange: Exchange) -> None:
        request = exchange.request
        managed = request.path.startswith(tuple(path.removesuffix("0") for _, path in MANAGEMENT))
        try:
            match request.method, request.path:
                case "GET" | "HEAD", "/":
                    await _text(exchange, 200, "Ollama is running")
                case "GET" | "HEAD", "/api/version":
                    await _json(exchange, {"version": VERSION})
                case "GET" | "HEAD", "/api/tags":
                    await _json(exchange, {"models": [self._entry(name) for name in self.models]})
                case "GET", "/api/ps":
                    await _json(exchange, {"models": self._running()})
                case "POST", "/api/show":
                    body = binding.bind(request.body, "ShowRequest")
                    await _json(exchange, self._shown(body.get("model") or body.get("name")))
                case "POST", "/api/chat" | "/api/generate" | "/api/embed":
                    await self.enter(exchange.attempt)
                    await self._infer(exchange)
                case _ if managed:
                    await self._manage(exchange)
                case _:
                    await _text(exchange, 404, "404 page not found")
        except Failed as failed:
            await _json(exchange, {"error": failed.text}, failed.status)

    async def _infer(self, exchange: Exchange) -> None:
        request = exchange.request
        body = binding.bind(request.body, _STRUCTS[request.path])
        name, model = self._find(body)
        pace = self.paces.get(name, Pace())
        if pace.instead:
            await pace.instead(exchange)
            return
        if request.path == "/api/embed":
            await _json(exchange, self._embedded(body, name, model))
            return
        chat = request.path == "/api/chat"
        answer = (dialect.answer_chat if chat else dialect.answer_generate)(body, model, name)
        self._load(name, model, body, answer.done_reason)
        self.cuts.append(answer.cut)
        form = dialect.chat_object if chat else dialect.generate_object
        end = {"done": True} | dialect.ending(answer, model, seconds=0.05)
        if chat or body.get("raw") or answer.done_reason in ("load", "unload"):
            context: dict[str, Any] = {}
        else:
            context = {"context": [1, 2, 3]}
        if body.get("stream") is False or answer.done_reason in ("load", "unload"):
            await asyncio.sleep(pace.itl * len(answer.said))
            if pace.fault:
                await pace.fault(exchange)
                return
            said = dialect.merged(answer.said)
            whole = form(body["model"], _now(), said) | end | context | _logprobs(said)
            await _json(exchange, whole)
            exchange.attempt.tokens = answer.tokens
            return
        await exchange.head(200, _NDJSON)
        for number, (said, last) in enumerate(dialect.in_objects(answer, model)):
            if pace.fault and number == pace.after:
                await pace.fault(exchange)
                return
            if pace.on_demand and not last:
                await exchange.attempt.wanted.acquire()
            await asyncio.sleep(pace.itl)
            line = form(body["model"], _now(), said) | (end | context if last else {"done": False}) | _logprobs(said)
            await _line(exchange, line, pace.slices)
            exchange.attempt.tokens += 1
        await exchange.end_stream()

    def _find(self, body: Mapping[str, Any]) -> tuple[str, Model]:
        asked = body.get("model") or ""
        if not asked:
            raise Failed(400, "model is required")
        name = asked if ":" in asked.rpartition("/")[2] else f"{asked}:latest"
        if name not in self.models:
            raise Failed(404, f"model '{asked}' not found")
        return name, self.models[name]

    def _load(self, name: str, model: Model, body: Mapping[str, Any], reason: str) -> None:
        seconds = min(dialect.keep_alive(body.get("keep_alive")), 10**9)
        self.loaded[name] = (datetime.now(UTC) + timedelta(seconds=seconds), dialect.context_of(body, model))
        if reason == "unload" or seconds == 0:
            del self.loaded[name]

    def _embedded(self, body: dict[str, Any], name: str, model: Model) -> dict[str, Any]:
        given = body.get("input")
        texts = [given] if isinstance(given, str) and given else given or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Failed(400, "invalid input type")
        binding.check_options(body.get("options") or {})
        if model.lacks("embedding"):
            raise Failed(501, "This server does not support embeddings. Start it with `--embeddings`")
        limit = dialect.context_of(body, model) - 2  # begin and end of the sequence
        if body.get("truncate") is False and any(len(text.split()) > limit for text in texts):
            raise Failed(400, "the input length exceeds the context length")
        self._load(name, model, body, "")
        counts = [min(len(text.split()), limit) for text in texts]
        self.cuts.append(sum(len(text.split()) for text in texts) - sum(counts))
        size = body.get("dimensions") or model.dimensions
        answer = {
            "model": body["model"],
            "embeddings": [_vector(text, min(size, model.dimensions)) for text in texts],
            "total_duration": 14143917,
            "load_duration": 1019500,
            "prompt_eval_count": sum(count + 2 for count in counts),
        }
        return answer if texts else {"model": body["model"], "embeddings": []}

    def _entry(self, name: str) -> dict[str, Any]:
        model = self.models[name]
        entry = {
            "name": name,
            "model": name,
            "modified_at": _MODIFIED,
            "size": 2019393189,
            "digest": hashlib.sha256(name.encode()).hexdigest(),
            "details": _details(),
        }
        if not self.terse:
            entry["details"] = _details() | {"context_length": model.trained, "embedding_length": 3072}
            entry["capabilities"] = list(model.capabilities)
        return entry

    def _shown(self, asked: str | None) -> dict[str, Any]:
        name, model = self._find({"model": asked})
        return {
            "modelfile": f"# Modelfile generated by \"ollama show\"\nFROM {name}",
            "parameters": 'stop                           "<|eot_id|>"',
            "template": "{{ .Prompt }}",
            "details": _details(),
            "model_info": {
                "general.architecture": "llama",
                "general.parameter_count": 8030261248,
                "llama.context_length": model.trained,
                "llama.embedding_length": 4096,
                "tokenizer.ggml.tokens": None,
            },
            "capabilities": list(model.capabilities),
            "modified_at": _MODIFIED,
        }  # fmt: skip

    def _running(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name, "model": name, "size": 5137025024, "digest": hashlib.sha256(name.encode()).hexdigest(),
                "details": _details(), "expires_at": until.isoformat(), "size_vram": 5137025024,
                "context_length": context,
            }
            for name, (until, context) in self.loaded.items()
        ]  # fmt: skip

    async def _manage(self, exchange: Exchange) -> None:
        """Done as if it had succeeded, and remembered."""
        request = exchange.request
        self.touched.append((request.method, request.path))
        streamed = request.path in ("/api/pull", "/api/push", "/api/create")
        if streamed and json.loads(request.body or b"{}").get("stream", True):
            await exchange.head(200, _NDJSON)
            for status in ("pulling manifest", "verifying sha256 digest", "success"):
                await _line(exchange, {"status": status})
            await exchange.end_stream()
        elif streamed:
            await _json(exchange, {"status": "success"})
        else:
            await _text(exchange, 200, "")


def error_line(text: str) -> Behaviour:
    """Ollama's way of failing in the middle of a stream: one object with nothing but an error, and an orderly end."""

    async def behave(exchange: Exchange) -> None:
        await _line(exchange, {"error": text})
        await exchange.end_stream()

    return behave


def refusal(status: int, text: str) -> Behaviour:
    """An error answer."""

    async def behave(exchange: Exchange) -> None:
        await _json(exchange, {"error": text}, status)

    return behave


def _logprobs(said: dialect.Said) -> dict[str, Any]:
    return {"logprobs": list(said.logprobs)} if said.logprobs else {}


def _details() -> dict[str, Any]:
    return {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "8.0B",
        "quantization_level": "Q4_K_M",
    }  # fmt: skip


def _vector(text: str, size: int) -> list[float]:
    digest = hashlib.shake_256(text.encode()).digest(size)
    norm = sum(byte * byte for byte in digest) ** 0.5 or 1.0
    return [byte / norm for byte in digest]


def _now() -> str:
    """The time of this object, in Go's form: nanoseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "321Z"


async def _line(exchange: Exchange, value: Mapping[str, Any], slices: int = 0) -> None:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    step = slices or len(data)
    for start in range(0, len(data), step):
        await exchange.chunk(data[start : start + step])
        if slices:
            await asyncio.sleep(0)


async def _json(exchange: Exchange, value: Mapping[str, Any], status: int = 200) -> None:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    length = ("content-length", str(len(body)))
    await exchange.head(status, (("content-type", "application/json; charset=utf-8"), length))
    if exchange.request.method != "HEAD":
        await exchange.write(body)


async def _text(exchange: Exchange, status: int, text: str) -> None:
    length = ("content-length", str(len(text)))
    await exchange.head(status, (("content-type", "text/plain; charset=utf-8"), length))
    if exchange.request.method != "HEAD":
        await exchange.write(text.encode())
