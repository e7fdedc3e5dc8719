"""From bytes to an admitted call: the body is read once, parsed once, and never trusted again in its first form."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import orjson

from gateway.dataplane.reply import Receive
from gateway.domain.call import Call, Client, Endpoint
from gateway.domain.errors import Forbidden, InvalidRequest, TooLarge
from gateway.domain.people import People, Sharing, cache_salt
from gateway.domain.principal import ANONYMOUS, PRIVILEGED_PARAMETERS, Principal
from gateway.domain.snapshot import EMPTY, Snapshot

_MAX_DEPTH = 64
_MAX_MODEL = 256
_MAX_USER = 256  # characters of the name that a program has for one of its users
_USER = ("user", "safety_identifier")  # parameters that name one, the first that does
_NUMBER = (int, float)
#: What a parameter must be if it is there and not null.  Ranges are the upstream's business; these keep a request from
#: meaning something else to the gateway than to the upstream.
_TYPES: dict[str, tuple[type, ...]] = {
    "frequency_penalty": _NUMBER, "presence_penalty": _NUMBER, "temperature": _NUMBER, "top_p": _NUMBER,
    "max_tokens": (int,), "max_completion_tokens": (int,), "n": (int,), "seed": (int,), "top_logprobs": (int,),
    "tools": (list,), "response_format": (dict,), "logit_bias": (dict,), "stop": (str, list),
    "stream_options": (dict,), "user": (str,), "safety_identifier": (str,), "metadata": (dict,), "cache_salt": (str,),
    "chat_template_kwargs": (dict,), "vllm_xargs": (dict,),
}  # fmt: skip
_POSITIVE = ("n", "max_tokens", "max_completion_tokens")
_MAX_COUNT = 2**31
_MAX_N = 128
#: Keys of `chat_template_kwargs` that reach past the template into the tokenizer (CVE-2025-62426).
_TEMPLATE_TRAPS = frozenset(
    {"tokenize", "chat_template", "return_dict", "return_tensors", "tokenizer_kwargs", "padding"}
)
#: Keys of `vllm_xargs` that vLLM takes for the parameters of that name (0.32, v1/request.py).
_TRANSFERS = frozenset({"kv_transfer_params", "ec_transfer_params"})


class ClientLeft(Exception):
    """The client went away while its body was read."""


def new_request_id(at: int | None = None) -> str:
    """Sortable by time (48 bits of milliseconds, then 80 random bits): unique, not secret.  `at`: Unix time in
    nanoseconds, None for now."""
    return f"req_{((time.time_ns() if at is None else at) // 1_000_000) << 80 | int.from_bytes(os.urandom(10)):032x}"


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes.  Raises TooLarge, ClientLeft."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes; server.max_body_mib sets the limit.")


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`.

    Refused besides what orjson refuses (NaN, infinity, lone surrogates, invalid UTF-8): duplicate keys, because two
    readers may take two different ones, and nesting deeper than 64.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error.msg} (position {error.pos}).") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH and _deeper_than(body, _MAX_DEPTH):
        raise InvalidRequest(f"The body is nested deeper than {_MAX_DEPTH} levels.")
    if _quotes(raw) != _quotes(orjson.dumps(body)):
        raise InvalidRequest("The body has an object in which a key appears twice.")
    return body


def _quotes(text: bytes) -> int:
    """Quotation marks that delimit strings.  Of two texts for one value the counts are equal, unless a key appeared
    twice in an object: the parser keeps one of them, and the others' quotes are missing when it is written again."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"")
        return text.count(b'"') - text.count(b'\\"')
    return text.count(b'"')


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def build_call(
    endpoint: Endpoint,
    body: dict[str, Any],
    size: int,
    request_id: str,
    principal: Principal,
    client: Client,
    snapshot: Snapshot = EMPTY,
    secret: bytes = b"",
) -> Call:
    """An admitted call.  `secret`: what cache salts are derived from, where the operator gives nothing for that.

    Raises InvalidRequest or Forbidden, naming the parameter.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest(
            "You must provide a model parameter: the name of a model from GET /v1/models.", param="model"
        )
    if len(model) > _MAX_MODEL:
        raise InvalidRequest(f"The model's name is longer than {_MAX_MODEL} characters.", param="model")
    for name in PRIVILEGED_PARAMETERS.intersection(body):
        _check_right(principal, client, name)
    for name, value in body.items():
        types = _TYPES.get(name)
        if types and value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            raise InvalidRequest(f"'{name}' must be {_names(types)}.", param=name, code="invalid_type")
    for name in _POSITIVE:
        count = body.get(name)
        if count is not None and not 1 <= count < _MAX_COUNT:
            raise InvalidRequest(
                f"'{name}' must be at least 1 and below 2^31.", param=name, code="integer_out_of_range"
            )
    if (body.get("n") or 1) > _MAX_N:
        raise InvalidRequest(f"'n' must be at most {_MAX_N}.", param="n", code="integer_above_max_value")
    if traps := _TEMPLATE_TRAPS.intersection(body.get("chat_template_kwargs") or ()):
        raise InvalidRequest(f"'chat_template_kwargs' may not hold '{min(traps)}'.", param="chat_template_kwargs")
    if _TRANSFERS.intersection(body.get("vllm_xargs") or ()):
        _check_right(principal, client, "kv_transfer_params")
    _CHECKS[endpoint](body)
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("'stream' must be true or false.", param="stream", code="invalid_type")
    options = body.get("stream_options")
    if options is not None and not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if not client.user:
        client = _with_named_user(client, principal, body, snapshot.people)
    return Call(
        request_id=request_id,
        endpoint=endpoint,
        model=model,
        body=body,
        stream=bool(stream) and endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS),
        wants_usage=bool(options and options.get("include_usage")),
        principal=principal,
        client=client,
        sticky=client.chat or client.user or _known_as(principal) or request_id,
        cache_salt=_cache_salt(snapshot, principal, client, body, secret),
        size=size,
    )


def _known_as(principal: Principal) -> str:
    """Callers without a key are strangers to each other: no two of them are known by one name."""
    return "" if principal is ANONYMOUS else principal.name


def _with_named_user(client: Client, principal: Principal, body: dict[str, Any], people: People) -> Client:
    """The client with the user that the body names, where nobody trusted has said who it is."""
    for parameter in _USER:
        if user := body.get(parameter):
            if len(user) > _MAX_USER or not user.isprintable():  # it will stand in logs and tables
                raise InvalidRequest(
                    f"'{parameter}' must be at most {_MAX_USER} printable characters.", param=parameter
                )
            return replace(client, user=people.named(principal, user))
    return client


def _cache_salt(snapshot: Snapshot, principal: Principal, client: Client, body: dict[str, Any], secret: bytes) -> str:
    """The salt of the tenant that asks: the team, else the key.  "" where everybody shares, or nobody is there to."""
    people = snapshot.people
    by_user = people.cache is Sharing.USER
    if people.cache is Sharing.SHARED or not (by_user or client.team or people.teams or len(snapshot.keys) > 1):
        return ""
    tenant = f"team {client.team}" if client.team else f"key {principal.key or principal.name}"
    if by_user:
        tenant = f"{tenant} user {client.user}"
    if people.cache_secret is not None:
        secret = people.cache_secret.reveal().encode()
    return cache_salt(secret, tenant, body.get("cache_salt") or "")


def _check_right(principal: Principal, client: Client, name: str) -> None:
    if name not in principal.allow and name not in client.rights:
        raise Forbidden(f"This key has no right to send '{name}'; an operator can grant it in auth.keys[].allow.")


def _check_chat(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list of at least one message.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f"'messages[{index}]' must be an object with a 'role'.", param="messages")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise InvalidRequest(f"'messages[{index}].content' must be a text or a list of parts.", param="messages")


def _check_completions(body: dict[str, Any]) -> None:
    if not isinstance(body.get("prompt"), str | list):
        raise InvalidRequest("'prompt' must be a text, or a list of texts or tokens.", param="prompt")


def _check_embeddings(body: dict[str, Any]) -> None:
    if not isinstance(body.get("input"), str | list) or body["input"] in ("", []):
        raise InvalidRequest("'input' must be a text that is not empty, or a list of texts or tokens.", param="input")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")


def _check_tokenize(body: dict[str, Any]) -> None:
    if not isinstance(body.get("prompt"), str) and not isinstance(body.get("messages"), list):
        raise InvalidRequest("'prompt' or 'messages' is needed.", param="prompt")


_CHECKS = {
    Endpoint.CHAT: _check_chat,
    Endpoint.COMPLETIONS: _check_completions,
    Endpoint.EMBEDDINGS: _check_embeddings,
    Endpoint.TOKENIZE: _check_tokenize,
}


def _names(types: tuple[type, ...]) -> str:
    words = {int: "an integer", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return "a number" if types == _NUMBER else " or ".join(words[t] for t in types)
