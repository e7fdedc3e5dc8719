"""A vLLM that computes with adapters, as far as one can tell from outside: every token says what it was computed with.

Its answers consist of one word, which names the content that computed it: the first twelve digits of the digest of the
files that were read, whatever the name under which they were loaded.  What goes wrong inside vLLM 0.32 goes wrong here:

- `max_loras` different adapters decode at once, other requests are put off, however many places are free;
- `max_cpu_loras` of them are kept in memory, those used least recently are read again from where they were loaded, and
  when nothing is there, the whole server dies;
- the prefix cache goes by name and path: other content under both begins its answers with the old one;
- unloading forgets a name and nothing else, and answers go on with the weights that they began with;
- before 0.26 (vllm#47724) a load beside `max_loras` decoding adapters makes somebody's answer go on with it;
- `load_inplace` changes the weights of running answers.

Whoever does what leads there is told off in `violations`.  The server is in the loop of the test.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BASE = "base"
FILES = ("adapter_config.json", "adapter_model.safetensors")

_WORDS = 4  # in an answer, when nobody says how many
_STEADY = (0, 26)  # the first version with the fix of vllm#47724


def content_of(folder: Path) -> str:
    """What an adapter's files are called here.  Raises OSError."""
    lines = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, eq=False)
class _Lora:
    """What a name stands for since it was loaded; the same name loaded again is another one."""

    name: str
    path: str


@dataclass(slots=True, eq=False)
class _Request:
    """A request from its arrival to its last word."""

    lora: _Lora | None
    body: dict[str, Any]
    chat: bool
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    over: asyncio.Future[None]
    weights: str = ""  # what it is computed with; "" before it is
    words: list[str] = field(default_factory=list)
    came: float = field(default_factory=time.monotonic)
    put_off: bool = False  # others decode, and there is no place beside them

    @property
    def left(self) -> bool:
        return self.reader.at_eof() or self.writer.transport.is_closing()

    @property
    def length(self) -> int:
        return int(self.body.get("max_tokens") or _WORDS)


class LoraEngine:
    """One engine.  `root`: its base model, as it lists it; `step`: seconds between two words of an answer.

    `asked`: loads and unloads as ("load", name), in order.  `answered`: whole answers by the name that was asked for;
    `probed`: those that asked for probabilities.  `most_adapters`: how many different ones it was sent requests for at
    once; `most_requests`: how many requests; `put_off`: how many of them found others decoding.  `reads`: how often it
    read an adapter from the disk.  `longest_answer`: seconds from a request to its last word, `longest_load`: from the
    load of an adapter to the first answer with it.
    """

    def __init__(
        self,
        root: str,
        *,
        version: str = "0.32.0",
        max_loras: int = 4,
        max_cpu_loras: int = 8,
        step: float = 0.01,
    ) -> None:
        self.root = root
        self.version = version
        self.max_loras = max_loras
        self.max_cpu_loras = max_cpu_loras
        self.step = step
        self.violations: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.answered: Counter[str] = Counter()
        self.probed: Counter[str] = Counter()
        self.most_adapters = 0
        self.most_requests = 0
        self.put_off = 0
        self.reads = 0
        self.longest_answer = 0.0
        self.longest_load = 0.0
        self.dead = False
        self._names: dict[str, _Lora] = {}
        self._memory: OrderedDict[_Lora, str] = OrderedDict()  # what is in memory, the least recently used first
        self._blocks: dict[tuple[str, str], str] = {}  # (name, path) → what the cached prefix was computed with
        self._contents: dict[str, str] = {}  # name → what was ever loaded under it
        self._loading: dict[str, float] = {}  # name → since when it is loaded, and nothing was answered with it
        self._waiting: deque[_Request] = deque()
        self._running: dict[_Request, None] = {}
        self._open: dict[_Request, None] = {}  # waiting, running, or about to be told that it is over
        self._work = asyncio.Event()
        self._clients: set[asyncio.StreamWriter] = set()
        self._port = 0
        self._server: asyncio.Server | None = None
        self._core: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def adapters(self) -> dict[str, str]:
        """Name → path of what it lists."""
        return {name: lora.path for name, lora in self._names.items()}

    @property
    def loads(self) -> list[str]:
        return [name for what, name in self.asked if what == "load"]

    @property
    def decoding(self) -> Counter[str]:
        """Name → requests that it is being computed with, names of unloaded adapters, too."""
        return Counter(request.lora.name for request in self._running if request.lora is not None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """On the port that it had, and with nothing of what it knew."""
        self._names.clear()
        self._memory.clear()
        self._blocks.clear()
        self.dead = False
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=1024)
        self._port = self._server.sockets[0].getsockname()[1]
        self._core = asyncio.create_task(self._run(), name="engine core")

    async def stop(self) -> None:
        """Every answer is cut."""
        if self._core is None or self._server is None:
            return
        self._core.cancel()
        self._hang_up()
        await self._server.wait_closed()
        await asyncio.wait({self._core})
        self._core = self._server = None

    # -- HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while not writer.transport.is_closing():
                    await self._exchange(reader, writer)
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.split("\r\n")[:-2]
        method, path, _ = start.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(await reader.readexactly(int(fields.get("content-length", "0"))) or b"{}")
        match method, path:
            case "GET", "/v1/models":
                _answer(writer, 200, {"object": "list", "data": list(self._listed())})
            case "GET", "/version":
                _answer(writer, 200, {"version": self.version})
            case "GET", "/health":
                _answer(writer, 200, "")
            case "POST", "/v1/load_lora_adapter":
                _answer(writer, *self._load(body))
            case "POST", "/v1/unload_lora_adapter":
                _answer(writer, *self._unload(body["lora_name"]))
            case "POST", "/v1/chat/completions" | "/v1/completions":
                await self._compute(_Request(
                    None, body, path.endswith("chat/completions"), reader, writer,
                    asyncio.get_running_loop().create_future(),
                ))  # fmt: skip
            case _:
                _answer(writer, 404, {"detail": "Not Found"})

    def _listed(self) -> Iterator[dict[str, Any]]:
        common = {"object": "model", "created": 1795461248, "owned_by": "vllm"}
        yield {"id": BASE, **common, "root": self.root, "parent": None, "max_model_len": 2048}
        for name, lora in self._names.items():
            yield {"id": name, **common, "root": lora.path, "parent": BASE, "max_model_len": None}

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, path = body["lora_name"], body["lora_path"]
        self.asked.append(("load", name))
        self._loading.setdefault(name, time.monotonic())
        if body.get("load_inplace"):
            self.violations.append(f"{name} was loaded in place")
        elif name in self._names:
            text = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, …"
            return 400, _error(text, "InvalidUserInput", 400)
        try:
            content = content_of(Path(path))
        except OSError:
            return 404, _error(f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError", 404)
        if self._contents.setdefault(name, content) != content:
            self.violations.append(f"{name} was loaded with {content} after {self._contents[name]}")
        if body.get("load_inplace"):
            for request in self._running:
                if request.lora is not None and request.lora.name == name:
                    request.weights = content
        if tuple(map(int, self.version.split(".")[:2])) < _STEADY and len(self._loras) >= self.max_loras:
            self.violations.append(f"{name} was loaded beside {len(self._loras)} adapters that decode")
            next(request for request in self._running if request.lora is not None).weights = content
        self._names[name] = lora = _Lora(name, path)
        self._keep(lora, content)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, name: str) -> tuple[int, Any]:
        self.asked.append(("unload", name))
        if name not in self._names:
            return 404, _error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
        if any(request.lora is not None and request.lora.name == name for request in self._open):
            self.violations.append(f"{name} was unloaded while it had requests")
        del self._names[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    async def _compute(self, request: _Request) -> None:
        name = request.body["model"]
        if name != BASE:
            if name not in self._names:
                self.violations.append(f"{name} was asked for and not there")
                text = f"The model `{name}` does not exist."
                _answer(request.writer, 404, _error(text, "NotFoundError", 404, "model"))
                return
            request.lora = self._names[name]
        self._open[request] = None
        self.most_requests = max(self.most_requests, len(self._open))
        self.most_adapters = max(self.most_adapters, len({one.lora for one in self._open} - {None}))
        self._waiting.append(request)
        self._work.set()
        await request.over

    # -- the engine core: one step, one word for everyone

    @property
    def _loras(self) -> set[_Lora]:
        return {request.lora for request in self._running if request.lora is not None}

    async def _run(self) -> None:
        while not self.dead:
            await self._work.wait()
            self._schedule()
            for request in tuple(self._running):
                if request.left:
                    self._end(request)
                else:
                    self._say(request)
            if not self._waiting and not self._running:
                self._work.clear()
            await asyncio.sleep(self.step)

    def _schedule(self) -> None:
        decoding = self._loras
        put_off: deque[_Request] = deque()
        for request in self._waiting:
            if request.left:
                self._end(request)
            elif request.lora is None or request.lora in decoding or len(decoding) < self.max_loras:
                self._running[request] = None
                request.weights = BASE if request.lora is None else self._fetched(request.lora)
                if request.lora is not None:
                    decoding.add(request.lora)
            else:
                self.put_off += not request.put_off
                request.put_off = True
                put_off.append(request)
        self._waiting = put_off

    def _fetched(self, lora: _Lora) -> str:
        if lora not in self._memory:
            try:
                content = content_of(Path(lora.path))
            except OSError:
                self._die(lora)
                return ""
            self._keep(lora, content)
        self._memory.move_to_end(lora)
        return self._memory[lora]

    def _keep(self, lora: _Lora, content: str) -> None:
        self.reads += 1
        self._memory[lora] = content
        decoding = self._loras
        for old in [old for old in self._memory if old not in decoding and old is not lora]:
            if len(self._memory) <= self.max_cpu_loras:
                break
            del self._memory[old]

    def _die(self, lora: _Lora) -> None:
        self.violations.append(f"{lora.name} was to be read again from {lora.path}, and nothing is there: the end")
        self.dead = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in tuple(self._clients):
            client.transport.abort()
        for request in tuple(self._open):
            self._end(request)

    def _say(self, request: _Request) -> None:
        word = request.weights
        if not request.words and request.lora is not None:
            word = self._blocks.setdefault((request.lora.name, request.lora.path), word)
        request.words.append(word)
        last = len(request.words) == request.length
        if last:
            self._end(request)  # before the other side can know: what it does next finds the place free
            self._count(request)
        if request.body.get("stream"):
            _stream(request, word, last)
        elif last:
            _answer(request.writer, 200, _whole(request))

    def _end(self, request: _Request) -> None:
        self._running.pop(request, None)
        self._open.pop(request, None)
        if not request.over.done():
            request.over.set_result(None)

    def _count(self, request: _Request) -> None:
        name, now = request.body["model"], time.monotonic()
        self.longest_answer = max(self.longest_answer, now - request.came)
        self.longest_load = max(self.longest_load, now - self._loading.pop(name, now))
        if "logprobs" in request.body:
            self.probed[name] += 1
        else:
            self.answered[name] += 1


def _usage(request: _Request) -> dict[str, int]:
    said = len(request.words)
    return {"prompt_tokens": 3, "completion_tokens": said, "total_tokens": 3 + said}


def _whole(request: _Request) -> dict[str, Any]:
    text = "".join(f"{word} " for word in request.words)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if request.chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        chances = [-0.3] * len(request.words)
        choice |= {"text": text, "logprobs": {"tokens": request.words, "token_logprobs": chances}}
    kind = "chat.completion" if request.chat else "text_completion"
    return {
        "id": "cmpl-1", "object": kind, "created": 1, "model": request.body["model"], "choices": [choice],
        "usage": _usage(request),
    }  # fmt: skip


def _stream(request: _Request, word: str, last: bool) -> None:
    first = len(request.words) == 1
    part = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": request.body["model"]}
    delta = {"content": f"{word} "} | ({"role": "assistant"} if first else {})
    events = [{**part, "choices": [{"index": 0, "delta": delta, "finish_reason": "length" if last else None}]}]
    if last and (request.body.get("stream_options") or {}).get("include_usage"):
        events.append({**part, "choices": [], "usage": _usage(request)})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("data: [DONE]\n\n" if last else "")
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" if first else ""
    end = "0\r\n\r\n" if last else ""
    request.writer.write(f"{head}{len(text):x}\r\n{text}\r\n{end}".encode())


def _answer(writer: asyncio.StreamWriter, status: int, answer: Any) -> None:
    text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
    kind = "text/plain" if isinstance(answer, str) else "application/json"
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status, kind.encode(), len(text), text
    ))  # fmt: skip


def _error(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
