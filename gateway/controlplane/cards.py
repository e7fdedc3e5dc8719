"""The objects of `/v1/models`: OpenAI's keys, vLLM's, and those that Open WebUI takes as a model's settings.

Open WebUI 0.12 keeps every extra key and treats `info.meta` as if an admin had set it.  A `null` anywhere, `pipeline`
or `pipelines` would be misread, so none of them is ever written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import orjson

from gateway.controlplane.config import Description
from gateway.domain.listing import ListedModel

#: Open WebUI puts 26 kB of tools (some 6,000 tokens) into every chat with a model that has `builtin_tools`.
BUILTIN_TOOLS_CONTEXT = 32_768


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model.  None: nobody said."""

    owner: str
    name: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    context_length: int | None = None
    tools: bool | None = None
    vision: bool | None = None
    thinking: bool | None = None
    embedding: bool = False
    created: int = 0
    parent: str | None = None


class Presence(StrEnum):
    """Whether a model is in memory, in llama.cpp's words: Open WebUI 0.12 marks a `loaded` one and has a button to
    eject it; for other words (and for connections of another kind) it shows neither mark nor button.  A model without
    the key `status` would be taken for loaded."""

    LOADED = "loaded"
    LOADING = "loading"
    UNLOADED = "unloaded"
    AVAILABLE = "available"  # nobody loads or ejects it through the gateway


def facts_of(listed: ListedModel, owner: str, created: int) -> Facts:
    """What the upstream itself says; `created` (Unix time) stands where it does not say it."""
    return Facts(
        owner,
        name=listed.name,
        context_length=listed.context_length,
        tools=listed.tools,
        vision=listed.vision,
        thinking=listed.thinking,
        embedding=listed.embedding,
        created=created if listed.created is None else listed.created,
    )


def described(facts: Facts, by: Description | None) -> Facts:
    """`facts` with what the configuration says instead."""
    if by is None:
        return facts
    return replace(
        facts,
        name=by.name or facts.name,
        description=by.description or facts.description,
        tags=by.tags or facts.tags,
        context_length=by.context_length or facts.context_length,
        tools=facts.tools if by.tools is None else by.tools,
        vision=facts.vision if by.vision is None else by.vision,
    )


def shared(targets: Sequence[Facts]) -> Facts:
    """What holds whichever of a model's targets answers (at least one); the first names it."""
    first = targets[0]
    if len(targets) == 1:
        return first
    lengths = [target.context_length for target in targets if target.context_length is not None]
    return replace(
        first,
        context_length=min(lengths, default=None),
        tools=_all([target.tools for target in targets]),
        vision=_all([target.vision for target in targets]),
    )


def _all(said: Sequence[bool | None]) -> bool | None:
    if False in said:
        return False
    return None if None in said else True


def card(model: str, facts: Facts, presence: Presence = Presence.AVAILABLE) -> bytes:
    """The model's object as JSON."""
    capabilities = {
        "usage": True,
        "builtin_tools": facts.tools is True and (facts.context_length or 0) >= BUILTIN_TOOLS_CONTEXT,
    }
    if facts.vision is not None:
        capabilities["vision"] = facts.vision
    meta: dict[str, object] = {"capabilities": capabilities, "tags": [{"name": tag} for tag in facts.tags]}
    if facts.description is not None:
        meta["description"] = facts.description
    if facts.embedding:
        meta["hidden"] = True  # Open WebUI's chat offers it not, its RAG can use it
    entry: dict[str, object] = {
        "id": model,
        "object": "model",
        "created": facts.created,
        "owned_by": facts.owner,
        "name": facts.name or model,
        "status": {"value": presence.value},
    }
    if facts.parent is not None:
        entry["parent"] = facts.parent
    if facts.context_length is not None:
        entry["context_length"] = entry["max_model_len"] = facts.context_length
    entry["info"] = {"meta": meta}
    return orjson.dumps(entry)
