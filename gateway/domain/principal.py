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
    `models`: patterns of the names that exist for it (see `permits`).  `key`: the key's id; `team`: that which it
    belongs to, "" for none.  `users_required`: it stands for people, and each request must say for whom."""

    name: str
    allow: frozenset[str] = frozenset()
    models: tuple[str, ...] = ("*",)
    key: str = ""
    team: str = ""
    users_required: bool = False

    def may_use(self, model: str) -> bool:
        """Whether the key itself lets it use the name."""
        return permits(self.models, model)


ANONYMOUS = Principal("anonymous")


def permits(patterns: tuple[str, ...], model: str) -> bool:
    """Whether one of the patterns (`*`, `?`, `[…]`; case counts) fits the name.  Whoever may use an adapter may ask
    for each of its versions."""
    return any(
        pattern == "*" or fnmatchcase(model, pattern) or fnmatchcase(model.partition("@")[0], pattern)
        for pattern in patterns
    )
