"""vLLM's LoRA endpoints: load and unload an adapter while the engine runs, and see that it answers.

Never `load_inplace` (vLLM 0.32 then reads the files again at every step, and running answers change weights), and never
a name for a second content: an adapter's name in the engine is `name@version`, the version is its digest.  What an
engine holds is not asked here: it is in its list of models, which `probes` reads.
"""

from __future__ import annotations

import math
import re
from typing import Any

import orjson

from gateway.controlplane.contact import Contact, Reply, Unanswered
from gateway.domain.snapshot import Upstream

_VERSION_WITHIN = 1.0  # seconds
_WORKER_ERROR = "Worker failed with error '"
_MAX_REASON = 400  # characters of the engine's own words
_STEADY = (0, 26, 0)
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(?![\d])(.*)", re.ASCII)
_BEFORE_FINAL = re.compile(r"\.?(a|b|rc|dev)\d", re.ASCII)


class LoadError(Exception):
    """The engine does not hold the adapter after all.  The text says why and what to do.

    `lasting`: nothing will change by asking again soon.
    """

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


class Unseen(LoadError):
    """The engine cannot read the folder that it was told."""


class Unsound(LoadError):
    """The engine computes nothing with it that can be shown, and never will: its content does not change."""


async def load(upstream: Upstream, adapter: str, path: str, *, within: float) -> None:
    """Loads the adapter in the folder `path` (absolute, immutable; or a repository's name on the hub) under the name
    `adapter`, within so many seconds.

    One that is loaded already is fine: its name says its content.  Raises LoadError, of which Unseen is one.
    """
    reply = await _post(upstream, "load_lora_adapter", {"lora_name": adapter, "lora_path": path}, within)
    if reply.status != 200 and "has already been loaded" not in _message(reply):
        raise _load_error(reply, path)


async def unload(upstream: Upstream, adapter: str, *, within: float) -> None:
    """Makes the engine forget the name, within so many seconds; running answers end with the weights that they began
    with.

    One that is not loaded is fine.  Raises LoadError.
    """
    reply = await _post(upstream, "unload_lora_adapter", {"lora_name": adapter}, within)
    if reply.status != 200 and "cannot be found" not in _message(reply):
        raise LoadError(f"the engine did not unload it: {_said(reply)}", lasting=False)


async def probe(upstream: Upstream, adapter: str, *, within: float) -> None:
    """Has the engine compute one token with the adapter, within so many seconds, and looks at its probability.

    vLLM takes weights that it cannot compute with and answers with empty text and status 200; only the probability
    gives them away, because NaN is none.  An engine that completes no text (one for embeddings) is taken at its word.
    Raises LoadError, of which Unsound is one.
    """
    body = {"model": adapter, "prompt": "Hello", "max_tokens": 1, "temperature": 0, "logprobs": 1, "ignore_eos": True}
    reply = await _post(upstream, "completions", body, within)
    message = _message(reply)
    if reply.status == 200:
        _judge(reply.body)
    elif "Out of range float" in message:
        raise _computes_nan()
    elif "does not exist" in message:
        raise LoadError("the engine listed it and does not know it any more", lasting=False)
    elif reply.status in (401, 403):
        raise _wrong_key()
    elif reply.status not in (404, 405, 501) and "does not support" not in message:
        lasting = 400 <= reply.status < 500 and reply.status not in (408, 429)
        raise LoadError(f"the engine lists it and does not answer with it: {_said(reply)}", lasting=lasting)


async def version(contact: Contact, upstream: Upstream) -> str:
    """The engine's version as it tells it, "" where it does not."""
    path = upstream.path.removesuffix("/v1") + "/version" + (f"?{upstream.query}" if upstream.query else "")
    try:
        reply = await contact.request("GET", path, within=_VERSION_WITHIN)
        told = orjson.loads(reply.body).get("version") if reply.status == 200 else ""
    except (Unanswered, orjson.JSONDecodeError, AttributeError):
        return ""
    return told[:64] if isinstance(told, str) and told.isprintable() else ""


def steady(version: str) -> bool:
    """Whether an engine of this version may be sent a load at any time.

    Before 0.26.0 a load beside running answers can make one of them go on with another adapter, without a word
    (vllm#47724): the load moves an adapter to another slot, and the slots of a batch that stays the same are not looked
    up again.  What calls itself a pre-release of 0.26.0 may be older than the fix, and so may what does not say.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        return False
    release = tuple(int(part or 0) for part in found.groups()[:3])
    return release > _STEADY or (release == _STEADY and _BEFORE_FINAL.match(found[4]) is None)


async def _post(upstream: Upstream, endpoint: str, body: dict[str, Any], within: float) -> Reply:
    try:
        async with Contact(upstream) as contact:
            path = f"{upstream.path}/{endpoint}" + (f"?{upstream.query}" if upstream.query else "")
            return await contact.request("POST", path, orjson.dumps(body), within=within)
    except Unanswered as error:
        raise LoadError(str(error), lasting=False) from error


def _load_error(reply: Reply, path: str) -> LoadError:
    """vLLM answers 500 to most of a caller's faults, so the message decides and the status only where there is none."""
    message = _message(reply)
    if "No adapter found" in message:
        return Unseen(
            f"the engine cannot read {path}: it must see the adapter store under this very path; mount it there, "
            "read-only, on the engine's machine, or say in the upstream's `adapters.store` where it is mounted",
            lasting=True,
        )
    if _WORKER_ERROR in message:
        cause = message.partition(_WORKER_ERROR)[2].rpartition("', please check")[0] or message
        return LoadError(f"the engine refuses it: {cause}", lasting=True)
    if reply.status in (401, 403):
        return _wrong_key()
    if reply.status in (404, 405):
        return LoadError(
            "the engine takes no adapters at run time: start it with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            lasting=True,
        )
    return LoadError(f"the engine refuses it: {_said(reply)}", lasting=400 <= reply.status < 500)


def _wrong_key() -> LoadError:
    return LoadError("the engine refuses the gateway's key: mend the upstream's api_key", lasting=True)


def _judge(body: bytes) -> None:
    """Raises LoadError unless this answer of /v1/completions has a token with a probability."""
    try:
        choice = orjson.loads(body)["choices"][0]
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        if b"NaN" in body:  # which JSON does not know, and some servers write
            raise _computes_nan() from error
        raise LoadError("the engine lists it, and its answer with it cannot be read", lasting=False) from error
    try:
        sound = math.isfinite(choice["logprobs"]["token_logprobs"][0])
    except (LookupError, TypeError):
        sound = False
    if not sound:
        raise Unsound("the engine computes no token with it: its weights are not sound", lasting=True)


def _computes_nan() -> Unsound:
    return Unsound("the engine computes NaN with it: its weights are not sound", lasting=True)


def _said(reply: Reply) -> str:
    return f"{_message(reply)} (status {reply.status})"


def _message(reply: Reply) -> str:
    """The text of an error in OpenAI's form, in FastAPI's (`detail`), or as it is; bounded, on one line."""
    text = reply.body.decode("utf-8", "replace")
    try:
        parsed = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        parsed = None
    if isinstance(parsed, dict):
        error = parsed.get("error", parsed)
        found = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = found if isinstance(found, str) else text
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_REASON]).strip()
