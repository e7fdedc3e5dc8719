"""Ollama's native dialect as the fake server speaks it: pure functions from requests to the objects of an answer.

Written from Ollama's source of August 2026: api/types.go (names and omission of keys), server/routes.go (order and
words of the checks, what comes in which object), server/prompt.go (what is cut), llm/llama_server.go (the errors of the
server below).  Deterministic: words instead of tokens, tool arguments and JSON answers made up from their schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.ollama_binding import Failed, check_options
from tests.fakes.openai_dialect import example

DEFAULT_CONTEXT = 4096  # envconfig.ContextLength and less than 24 GiB of VRAM
_IMAGE_TOKENS = 768


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the server.

    `rendered`: Ollama's own renderer and parser, which send each tool call in an object of its own; otherwise
    llama-server's template, whose tool calls come with the last object.  `trained`: its longest context.  `counted`
    false: its answers have no counters, as those of old versions for a prompt that they remembered.
    """

    capabilities: tuple[str, ...] = ("completion", "tools")
    pieces: tuple[str, ...] = ("One", " two", " three", " four", " five")
    thoughts: tuple[str, ...] = ("Let", " me", " see.")
    trained: int = 131_072
    rendered: bool = False
    counted: bool = True
    dimensions: int = 8

    def lacks(self, capability: str) -> bool:
        return capability not in self.capabilities


@dataclass(frozen=True, slots=True)
class Said:
    """One object of an answer before it is put into JSON."""

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with.  `cut`: how many tokens of its prompt the model never saw."""

    said: tuple[Said, ...]
    done_reason: str
    prompt_tokens: int = 0
    tokens: int = 0
    cut: int = 0


def answer_chat(request: Mapping[str, Any], model: Model, name: str) -> Answer:
    """ChatHandler after the model was found; raises Failed."""
    messages = request.get("messages") or []
    seconds = keep_alive(request.get("keep_alive"))
    if not messages and seconds == 0:
        return Answer((), "unload")
    _check_logprobs(request)
    think = _thinks(request, model, name)
    if model.lacks("completion"):
        raise Failed(400, f'"{request["model"]}" does not support chat')
    _schedule(model, name, ["tools"] if request.get("tools") else [], request)
    if not messages:
        return Answer((), "load")
    if any(message.get("images") for message in messages) and model.lacks("vision"):
        raise Failed(
            500, _below(500, "image input is not supported - hint: you may need to provide the mmproj", "server_error")
        )
    kept, limit = _truncated(messages, request, model)
    prompt = sum(map(_tokens_of, kept))
    if prompt >= limit:
        raise Failed(400, _too_long(prompt, limit))
    cut = sum(map(_tokens_of, messages)) - prompt
    return _generated(request, model, think, kept[-1], prompt, limit, cut)


def answer_generate(request: Mapping[str, Any], model: Model, name: str) -> Answer:
    """GenerateHandler after the model was found; raises Failed."""
    prompt = request.get("prompt") or ""
    if not prompt and keep_alive(request.get("keep_alive")) == 0:
        return Answer((), "unload")
    _check_logprobs(request)
    if request.get("raw") and (request.get("template") or request.get("system")):
        raise Failed(400, "raw mode does not support template, system, or context")
    think = _thinks(request, model, name)
    if model.lacks("completion"):
        raise Failed(400, f'"{request["model"]}" does not support generate')
    _schedule(model, name, ["insert"] if request.get("suffix") else [], request)
    if not prompt:
        return Answer((), "load")
    limit, tokens = context_of(request, model), len(prompt.split())
    cut = 0
    if tokens >= limit:
        if request.get("truncate") is False:
            raise Failed(400, _too_long(tokens, limit))
        if request.get("shift") is False:
            raise Failed(
                400,
                "the prompt is longer than the context length currently available to the model; shorten the prompt, "
                "adjust the context length in settings, or use a model with a longer context length",
            )
        cut, tokens = tokens - limit // 2, limit // 2
    return _generated(request, model, think, {"role": "user"}, tokens, limit, cut)


def context_of(request: Mapping[str, Any], model: Model) -> int:
    """The context that the model is loaded with for this request."""
    asked = (request.get("options") or {}).get("num_ctx") or DEFAULT_CONTEXT
    least = 4 if model.lacks("vision") else 2048
    return min(max(int(asked), least), model.trained)


def keep_alive(value: Any) -> float:
    """Seconds; 300 where nothing is said."""
    if value is None:
        return 300.0
    if isinstance(value, int | float):
        return float("inf") if value < 0 else float(value)
    units = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", value)
    return float("inf") if value.startswith("-") else sum(float(count) * units[unit] for count, unit in parts)


def _check_logprobs(request: Mapping[str, Any]) -> None:
    if not 0 <= (request.get("top_logprobs") or 0) <= 20:
        raise Failed(400, "top_logprobs must be between 0 and 20")


def _thinks(request: Mapping[str, Any], model: Model, name: str) -> bool:
    think = request.get("think")
    if not model.lacks("thinking"):
        return True if think is None else bool(think)
    if think:
        raise Failed(400, f'"{request["model"]}" does not support thinking')
    return False


def _schedule(model: Model, name: str, needs: list[str], request: Mapping[str, Any]) -> None:
    missing = [capability for capability in needs if model.lacks(capability)]
    if missing:
        whole = name if "/" in name else f"library/{name}"
        raise Failed(400, f"registry.ollama.ai/{whole} does not support " + "\n".join(missing))
    check_options(request.get("options") or {})


def _truncated(
    messages: Sequence[Mapping[str, Any]], request: Mapping[str, Any], model: Model
) -> tuple[list[Mapping[str, Any]], int]:
    """The messages that are kept, and the context: without `truncate: false` the oldest go, in silence, until the rest
    fits; system messages and the last one stay."""
    limit = context_of(request, model)
    if request.get("truncate") is False:
        return list(messages), limit
    for first in range(len(messages)):
        system = [message for message in messages[:first] if message["role"] == "system"]
        kept = [*system, *messages[first:]]
        if sum(map(_tokens_of, kept)) <= limit:
            break
    return kept, limit


def _tokens_of(message: Mapping[str, Any]) -> int:
    words = len((message.get("content") or "").split()) + len((message.get("thinking") or "").split())
    return words + _IMAGE_TOKENS * len(message.get("images") or ())


def _too_long(tokens: int, limit: int) -> str:
    text = f"request ({tokens} tokens) exceeds the available context size ({limit} tokens), try increasing it"
    return _below(400, text, "exceed_context_size_error")


def _below(code: int, message: str, kind: str) -> str:
    """An error of the llama-server below, whose JSON Ollama passes on as the text of its own."""
    return json.dumps({"error": {"code": code, "message": message, "type": kind}}, separators=(",", ":"))


def _generated(
    request: Mapping[str, Any], model: Model, think: bool, last: Mapping[str, Any], prompt: int, limit: int, cut: int
) -> Answer:
    thoughts = [Said(thinking=thought) for thought in model.thoughts] if think else []
    if request.get("tools") and last["role"] != "tool":
        function = request["tools"][0]["function"]
        call = {
            "id": "call_fake0001",
            "function": {"index": 0, "name": function["name"], "arguments": example(function.get("parameters") or {})},
        }
        said: tuple[Said, ...] = (*thoughts, Said(tool_calls=(call,)))
        return Answer(said, "stop", prompt, len(said), cut)
    pieces, reason = _pieces(request, model), "stop"
    options = request.get("options") or {}
    stops = options.get("stop") or ()
    text = "".join(pieces)
    if found := [text.index(stop) for stop in stops if stop in text]:
        pieces = [text[: min(found)]]
    room = limit - prompt if request.get("shift") is False else len(pieces)
    budget = options.get("num_predict", -1)
    most = min(room, budget if budget >= 0 else len(pieces))
    if most < len(pieces):
        pieces, reason = pieces[:most], "length"
    spoken = [Said(piece, logprobs=_logprobs(request, piece)) for piece in pieces]
    return Answer((*thoughts, *spoken), reason, prompt, len(thoughts) + len(pieces), cut)


def _pieces(request: Mapping[str, Any], model: Model) -> list[str]:
    form = request.get("format")
    if form in (None, ""):
        return list(model.pieces)
    if form == "json":
        answer: Any = {"answer": "yes"}
    elif isinstance(form, dict):
        answer = example(form)
    else:
        raise Failed(500, f'invalid format: {json.dumps(form)}; expected "json" or a valid JSON Schema object')
    return json.dumps(answer).replace(" ", " \0").split("\0")


def _logprobs(request: Mapping[str, Any], piece: str) -> tuple[dict[str, Any], ...]:
    if not request.get("logprobs"):
        return ()
    found: dict[str, Any] = {"token": piece, "logprob": -0.5, "bytes": list(piece.encode())}
    if others := [_other(index) for index in range(request.get("top_logprobs") or 0)]:
        found["top_logprobs"] = others
    return (found,)


def _other(index: int) -> dict[str, Any]:
    token = f"~{index}"
    return {"token": token, "logprob": -1.0 - index, "bytes": list(token.encode())}


# -- objects


def chat_object(model: str, created: str, said: Said) -> dict[str, Any]:
    """A ChatResponse without `done` and what follows it."""
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.thinking:
        message["thinking"] = said.thinking
    if said.tool_calls:
        message["tool_calls"] = list(said.tool_calls)
    return {"model": model, "created_at": created, "message": message}


def generate_object(model: str, created: str, said: Said) -> dict[str, Any]:
    """A GenerateResponse without `done` and what follows it."""
    head = {"model": model, "created_at": created, "response": said.content}
    return head | ({"thinking": said.thinking} if said.thinking else {})


def merged(said: Sequence[Said]) -> Said:
    """All objects of an answer as the one that is sent without `stream`."""
    return Said(
        "".join(one.content for one in said),
        "".join(one.thinking for one in said),
        tuple(call for one in said for call in one.tool_calls),
        tuple(probability for one in said for probability in one.logprobs),
    )


def in_objects(answer: Answer, model: Model) -> Iterator[tuple[Said, bool]]:
    """The objects of a stream, and whether each is the last.  A renderer of Ollama's sends a tool call when it is
    complete; llama-server's come with the last object."""
    *before, last = answer.said or (Said(),)
    if last.tool_calls and not model.rendered:
        yield from ((said, False) for said in before)
        yield last, True
        return
    yield from ((said, False) for said in answer.said)
    yield Said(), True


def ending(answer: Answer, model: Model, seconds: float) -> dict[str, Any]:
    """The keys of the last object; counters and durations that are 0 are left out."""
    metrics = {
        "total_duration": round(seconds * 1e9),
        "load_duration": round(seconds * 1e8),
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": round(seconds * 2e8) if answer.prompt_tokens else 0,
        "eval_count": answer.tokens,
        "eval_duration": round(seconds * 5e8) if answer.tokens else 0,
    }
    if answer.done_reason in ("load", "unload") or not model.counted:
        metrics = {}
    return {"done_reason": answer.done_reason} | {name: value for name, value in metrics.items() if value}
