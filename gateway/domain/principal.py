"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

#: Request parameters that reach into the engine; a key needs the right of the same name to send one.
PRIVILEGED_PARAMETERS = frozenset({"chat_template", "kv_transfer_params", "priority", "request_id"})


#: The right to load and eject adapters with a client's key, through Open WebUI's own buttons.
ADAPTERS_RIGHT = "adapters"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that was let in.  `allow`: which privileged parameters it may send, and further rights.
    `models`: patterns (`*`, `?`, `[…]`; case counts) of the names that exist for it.  `key`: the id of the key that it
    came with, "" for none; `team`: whose key that is."""

    name: str
    allow: frozenset[str] = frozenset()
    models: tuple[str, ...] = ("*",)
    key: str = ""
    team: str = ""

    def may_use(self, model: str) -> bool:
        """Whether the name exists for this caller.  Whoever may use an adapter may ask for each of its versions."""
        return any(
            pattern == "*" or fnmatchcase(model, pattern) or fnmatchcase(model.partition("@")[0], pattern)
            for pattern in self.models
        )


ANONYMOUS = Principal("anonymous")
