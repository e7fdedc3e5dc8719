"""One admitted request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.domain.people import Bound
from gateway.domain.principal import Principal


class Endpoint(StrEnum):
    """The inference endpoints, by their path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    TOKENIZE = "/tokenize"


@dataclass(frozen=True, slots=True)
class Client:
    """What is known of the program that sent the request, and of the person for whom it did.

    `openwebui`: it is Open WebUI, which alone understands status events and extra usage keys.
    `task`: Open WebUI's name for a background task (`title_generation` …), "" for a person's own turn.
    `chat`: Open WebUI's identifier of the chat, "" where there is none.
    `user`: the person's id, "" for nobody.  `verified`: it is signed, or comes from a trusted network; else it is what
    the request's body says.  `roles`, `rights` and `bounds` (what the person and their team may use) are only those of
    a verified one.  `team`: the person's, else the key's, else "".
    """

    openwebui: bool = False
    task: str = ""
    chat: str = ""
    user: str = ""
    verified: bool = False
    roles: frozenset[str] = frozenset()
    team: str = ""
    rights: frozenset[str] = frozenset()
    bounds: tuple[Bound, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """An admitted request.  `body` is what was parsed and authorised; nothing else is ever forwarded, and nobody
    changes it: each attempt builds its own request from it.

    `model` is the public name that was asked for and that every answer carries.  `cache_salt` parts the prompts that an
    engine remembers for one tenant from those of others; "" where there is nothing to part.
    """

    request_id: str
    endpoint: Endpoint
    model: str
    body: dict[str, Any]
    stream: bool
    wants_usage: bool
    principal: Principal
    client: Client
    sticky: str = ""  # what the caller is known by when a name's traffic is split: the chat, the user, or the key
    cache_salt: str = ""
    size: int = 0  # bytes of the body as it came; the base of an estimated prompt count
