"""What an upstream says of a model that it has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as its upstream lists it.  None: the upstream did not say."""

    id: str
    name: str | None = None
    context_length: int | None = None
    parent: str | None = None  # the base model, for an adapter
    root: str | None = None  # where the engine read it from
    tools: bool | None = None
    vision: bool | None = None
    thinking: bool | None = None
    embedding: bool = False
    created: int | None = None
