"""One admitted request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.domain.principal import Principal


class Endpoint(StrEnum):
    """The inference endpoints, by their path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    TOKENIZE = "/tokenize"


@dataclass(frozen=True, slots=True)
class Client:
    """What the request's headers say of the program that sent it.

    `openwebui`: it is Open WebUI, which alone understands status events and extra usage keys.
    `task`: Open WebUI's name for a background task (`title_generation` …), "" for a person's own turn.
    `chat`: Open WebUI's identifier of the chat, "" where there is none.
    `user`: the id of the person behind the key, "" where nobody is known.
    """

    openwebui: bool = False
    task: str = ""
    chat: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """An admitted request.  `body` is what was parsed and authorised; nothing else is ever forwarded, and nobody
    changes it: each attempt builds its own request from it.

    `model` is the public name that was asked for and that every answer carries.
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
    size: int = 0  # bytes of the body as it came; the base of an estimated prompt count
