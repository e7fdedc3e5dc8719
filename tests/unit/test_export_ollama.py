"""A model is created in an Ollama server as Ollama's own client does it; what goes wrong there is a sentence here."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import ollama
import pytest

from adapters.export.ollama import NewModel, Ollama
from adapters.merge.errors import MergeError
from adapters.merge.progress import NobodyListensError
from tests.fakes.ollama_dialect import Model
from tests.fakes.ollama_store import OllamaStore
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.unit.commands import nobody

CONTENT = b"GGUF" + bytes(3 << 20)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
async def server() -> AsyncIterator[OllamaStore]:
    async with OllamaStore({"old:latest": Model(), "other:7b": Model()}) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, CONTENT)


def written(folder: Path, content: bytes) -> Path:
    (folder / "model.gguf").write_bytes(content)
    return folder / "model.gguf"


async def create(server: OllamaStore, model: NewModel) -> list[Mapping[str, Any]]:
    told: list[Mapping[str, Any]] = []
    await asyncio.to_thread(Ollama(server.url).create, model, told.append)
    return told


async def test_the_file_is_uploaded_and_the_model_made_of_it(server: OllamaStore, file: Path) -> None:
    told = await create(server, NewModel("pirate", file, "{{ .Prompt }}", ("<|im_end|>", "</s>")))
    assert server.blobs == {DIGEST: CONTENT}
    assert server.created["pirate:latest"] == {
        "model": "pirate", "files": {"model.gguf": DIGEST}, "template": "{{ .Prompt }}",
        "parameters": {"stop": ["<|im_end|>", "</s>"]}, "stream": True,
    }  # fmt: skip
    uploaded = [line["done"] for line in told if line["phase"] == "Uploading"]
    assert (uploaded[0], uploaded[-1]) == (0, len(CONTENT))
    assert uploaded == sorted(uploaded)
    assert [line["text"] for line in told if line["phase"] == "Creating"][-1] == "success"
    client = ollama.AsyncClient(host=server.url)
    assert "pirate:latest" in [model.model for model in (await client.list()).models]
    await client.close()


async def test_what_the_server_has_is_not_sent_again(server: OllamaStore, file: Path) -> None:
    for _ in range(2):
        await create(server, NewModel("pirate", file, None))
    sent = [request for request in server.requests if (request.method, request.path[:10]) == ("POST", "/api/blobs")]
    assert len(sent) == 1
    assert "template" not in server.created["pirate:latest"]


async def test_the_server_quantises_what_we_do_not(server: OllamaStore, file: Path) -> None:
    told = await create(server, NewModel("pirate", file, None, (), "q4_K_M"))
    assert server.created["pirate:latest"]["quantize"] == "q4_K_M"
    assert {
        "phase": "Creating",
        "done": 50,
        "total": 100,
        "unit": "bytes",
        "text": "quantizing F16 model to Q4_K_M",
    } in told


async def test_a_model_is_known_by_its_name_with_or_without_latest(server: OllamaStore) -> None:
    client = Ollama(server.url)
    known = [await asyncio.to_thread(client.has, name) for name in ("old", "old:latest", "other", "other:7b", "new")]
    assert known == [True, True, False, True, False]
    assert await asyncio.to_thread(client.version) == "0.34.1"


@pytest.mark.parametrize(
    ("model", "content", "reason"),
    [
        ({"name": "not a name"}, CONTENT, r"refuses \(status 400\): invalid model name"),
        ({}, b"not one", "does not create pirate: supplied file was not in GGUF format"),
        ({"quantize": "q9"}, CONTENT, "does not create pirate: unsupported quantization type Q9"),
    ],
)
async def test_a_refusal_is_told_with_its_reason(
    server: OllamaStore, tmp_path: Path, model: dict[str, str], content: bytes, reason: str
) -> None:
    file = written(tmp_path, content)
    wanted = NewModel(**{"name": "pirate", "file": file, "template": None, **model})  # type: ignore[arg-type]
    with pytest.raises(MergeError, match=reason):
        await create(server, wanted)
    assert not server.created


async def test_a_server_that_fails_on_the_way_has_created_nothing(file: Path) -> None:
    async with OllamaStore(broken="no space left on device") as server:
        with pytest.raises(MergeError, match="does not create pirate: no space left on device"):
            await create(server, NewModel("pirate", file, None))
        assert not server.created


async def test_whoever_leaves_is_not_taken_for_a_dead_server(server: OllamaStore, file: Path) -> None:
    def gone(line: Mapping[str, object]) -> None:
        if line["phase"] == "Uploading" and line["done"]:
            raise NobodyListensError

    with pytest.raises(NobodyListensError):
        await asyncio.to_thread(Ollama(server.url).create, NewModel("pirate", file, None), gone)


async def test_what_is_no_ollama_is_said_to_be_none() -> None:
    with nobody() as url, pytest.raises(MergeError, match=r"does not answer .*: look at --ollama-url"):
        Ollama(url).version()
    for url in ("ftp://host", "http://", ""):
        with pytest.raises(MergeError, match="is no URL of an Ollama server"):
            Ollama(url)
    async with OpenAIUpstream() as server:
        with pytest.raises(MergeError, match=r"refuses \(status 404\)"):
            await asyncio.to_thread(Ollama(f"http://127.0.0.1:{server.port}").version)
