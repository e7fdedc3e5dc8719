"""vLLM's LoRA endpoints: load and unload an adapter while the engine runs.

Never `load_inplace` (vLLM 0.32 then reads the files again at every step, and running answers change weights), and never
a name for a second content: an adapter's name in the engine is `name@version`, the version is its digest.  What an
engine holds is not asked here: it is in its list of models, which `probes` reads.
"""

from __future__ import annotations

import orjson

from gateway.controlplane.contact import Contact, Reply, Unanswered
from gateway.domain.snapshot import Upstream

_LOAD_WITHIN = 120.0  # seconds: a load takes tens of milliseconds, and gigabytes from a slow disk take longer
_UNLOAD_WITHIN = 30.0
_WORKER_ERROR = "Worker failed with error '"
_MAX_REASON = 400  # characters of the engine's own words


class LoadError(Exception):
    """The engine does not hold the adapter after all.  The text says why and what to do.

    `lasting`: nothing will change by asking again soon.
    """

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


async def load(upstream: Upstream, adapter: str, path: str) -> None:
    """Loads the adapter in the folder `path` (absolute, immutable) under the name `adapter`.

    One that is loaded already is fine: its name says its content.  Raises LoadError.
    """
    reply = await _post(upstream, "load_lora_adapter", {"lora_name": adapter, "lora_path": path}, _LOAD_WITHIN)
    if reply.status != 200 and "has already been loaded" not in _message(reply):
        raise _load_error(reply, path)


async def unload(upstream: Upstream, adapter: str) -> None:
    """Makes the engine forget the name; running answers end with the weights that they began with.

    One that is not loaded is fine.  Raises LoadError.
    """
    reply = await _post(upstream, "unload_lora_adapter", {"lora_name": adapter}, _UNLOAD_WITHIN)
    if reply.status != 200 and "cannot be found" not in _message(reply):
        raise LoadError(f"the engine did not unload it: {_message(reply)} (status {reply.status})", lasting=False)


async def _post(upstream: Upstream, endpoint: str, body: dict[str, str], within: float) -> Reply:
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
        return LoadError(
            f"the engine cannot read {path}: it must see the adapter store under this very path; "
            "mount it there, read-only, on the engine's machine",
            lasting=True,
        )
    if _WORKER_ERROR in message:
        cause = message.partition(_WORKER_ERROR)[2].rpartition("', please check")[0] or message
        return LoadError(f"the engine refuses it: {cause}", lasting=True)
    if reply.status in (401, 403):
        return LoadError("the engine refuses the gateway's key: mend the upstream's api_key", lasting=True)
    if reply.status in (404, 405):
        return LoadError(
            "the engine takes no adapters at run time: start it with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            lasting=True,
        )
    return LoadError(f"the engine refuses it: {message} (status {reply.status})", lasting=400 <= reply.status < 500)


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
