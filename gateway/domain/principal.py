"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass

#: Request parameters that reach into the engine; a key needs the right of the same name to send one.
PRIVILEGED_PARAMETERS = frozenset({"chat_template", "kv_transfer_params", "priority", "request_id"})


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that was let in.  `allow`: which privileged parameters it may send."""

    name: str
    allow: frozenset[str] = frozenset()


ANONYMOUS = Principal("anonymous")
