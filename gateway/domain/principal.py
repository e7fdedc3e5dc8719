"""Who asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

from gateway.domain.limits import Budget, Limits

#: Request parameters that reach into the engine; a key needs the right of the same name to send one.
PRIVILEGED_PARAMETERS = frozenset({"chat_template", "kv_transfer_params", "priority", "request_id"})

_EMPTY: Mapping[str, str] = MappingProxyType({})

#: The right to load and eject adapters with a client's key, through Open WebUI's own buttons.
ADAPTERS_RIGHT = "adapters"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that was let in.  `allow`: which privileged parameters it may send, and further rights.
    `models`: patterns of the names that exist for it (see `permits`).

    `key`: the id of its key, `team`: that which it belongs to, "" for none.  `users_required`: it stands for people,
    and each request must say for whom.  `rotation`: how often that key had been rotated when the secret was made that
    it showed.  `endpoints`: paths of the inference endpoints that it may use, None for all.  `expires`: Unix seconds
    from which on it is not let in.  `limits` and `budgets` are the key's own.  `metadata` is the operator's.
    `log_content`: what it asks and is answered is written down, and it is told so.
    """

    name: str
    allow: frozenset[str] = frozenset()
    models: tuple[str, ...] = ("*",)
    key: str = ""
    team: str = ""
    endpoints: frozenset[str] | None = None
    expires: float | None = None
    limits: Limits | None = None
    budgets: tuple[Budget, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY, hash=False)
    rotation: int = 0
    users_required: bool = False
    log_content: bool = False

    def may_use(self, model: str) -> bool:
        """Whether the key itself lets it use the name."""
        return permits(self.models, model)

    def may_call(self, endpoint: str) -> bool:
        """Whether this inference endpoint, by its path, is open to this caller."""
        return self.endpoints is None or endpoint in self.endpoints


ANONYMOUS = Principal("anonymous")


def permits(patterns: tuple[str, ...], model: str) -> bool:
    """Whether one of the patterns (`*`, `?`, `[…]`; case counts) fits the name.  Whoever may use an adapter may ask
    for each of its versions."""
    if "*" in patterns or model in patterns:
        return True
    plain = model.partition("@")[0]
    return any(fnmatchcase(model, pattern) or fnmatchcase(plain, pattern) for pattern in patterns)
