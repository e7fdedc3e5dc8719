"""The part of a fake Ollama that keeps models: blobs, and models created from them.

Written from Ollama's source of August 2026: server/routes.go (HeadBlobHandler, CreateBlobHandler, streamResponse),
server/create.go (CreateHandler, createModel), types/model/name.go.  Adapters are refused, as since 0.34.1
(ollama#14969).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from tests.fakes.ollama import OllamaServer
from tests.fakes.ollama_dialect import Model
from tests.fakes.upstream import Exchange

_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_QUANTIZED = ("Q8_0", "Q4_K_S", "Q4_K_M")


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class OllamaStore(OllamaServer):
    """`created`: what each create asked for, by the model's full name; `broken`: what a create ends with instead."""

    def __init__(self, models: Mapping[str, Model] | None = None, *, broken: str | None = None) -> None:
        super().__init__(models or {})
        self.blobs: dict[str, bytes] = {}
        self.created: dict[str, dict[str, Any]] = {}
        self.broken = broken

    async def answer(self, exchange: Exchange) -> None:
        method, path = exchange.request.method, exchange.request.path
        try:
            if path.startswith("/api/blobs/"):
                await self._blob(exchange, method, path.removeprefix("/api/blobs/"))
            elif (method, path) == ("POST", "/api/create"):
                await self._create(exchange)
            else:
                await super().answer(exchange)
        except _Refused as refused:
            await _say(exchange, refused.status, refused.text)

    async def _blob(self, exchange: Exchange, method: str, digest: str) -> None:
        if _DIGEST.fullmatch(digest) is None:
            raise _Refused(400, "invalid digest format")
        if method == "HEAD":
            await exchange.head(200 if digest in self.blobs else 404, (("content-length", "0"),))
            return
        body = exchange.request.body
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if found != digest:
            raise _Refused(400, f'digest mismatch, expected "{digest}", got "{found}"')
        self.blobs[digest] = body
        await exchange.head(201, (("content-length", "0"),))

    async def _create(self, exchange: Exchange) -> None:
        asked = exchange.request.json
        name = _full(asked.get("model") or asked.get("name") or "")
        files = asked.get("files") or {}
        if any(PurePosixPath(file).is_absolute() or ".." in file.split("/") for file in files):
            raise _Refused(400, "file path must be relative")
        if asked.get("adapters"):
            raise _Refused(400, "adapters are not supported")
        if not files:
            raise _Refused(400, "neither 'from' or 'files' was specified")
        first = True
        for line in self._steps(name, asked, files):
            if first:
                kind = (("content-type", "application/x-ndjson"), ("transfer-encoding", "chunked"))
                await exchange.head(200, kind)
            first = False
            await exchange.chunk(json.dumps(line).encode() + b"\n")
            if "error" in line:
                break
        await exchange.end_stream()

    def _steps(self, name: str, asked: Mapping[str, Any], files: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        yield {"status": "parsing GGUF"}
        for digest in files.values():
            if digest not in self.blobs:
                yield {"error": f"open blobs/{digest.replace(':', '-')}: no such file or directory"}
            elif not self.blobs[digest].startswith(b"GGUF"):
                yield {"error": "supplied file was not in GGUF format"}
        kind = str(asked.get("quantize") or "").upper()
        if kind and kind not in _QUANTIZED:
            yield {"error": f"unsupported quantization type {kind} - supported types are {', '.join(_QUANTIZED)}"}
        if kind:
            yield {"status": f"quantizing F16 model to {kind}", "digest": "0" * 19, "total": 100, "completed": 50}
        if self.broken is not None:
            yield {"error": self.broken}
        yield {"status": "writing manifest"}
        self.created[name] = dict(asked)
        self.models[name] = Model()
        yield {"status": "success"}


def _full(name: str) -> str:
    model, _, tag = name.partition(":")
    if not all(_PART.fullmatch(part) for part in (*model.split("/"), tag or "latest")):
        raise _Refused(400, "invalid model name")
    return f"{model}:{tag or 'latest'}"


async def _say(exchange: Exchange, status: int, text: str) -> None:
    await exchange.json(json.dumps({"error": text}).encode(), status)
