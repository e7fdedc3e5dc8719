"""Every route and who may use it.  A path that is not listed here does not exist; a route of FastAPI that is not
listed keeps the gateway from starting."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway.domain.call import Endpoint


class Access(StrEnum):
    """Who may use a route."""

    OPEN = "open"
    KEY = "key"  # a client's key
    ADMIN = "admin"
    OBSERVER = "observer"  # the admin key, or a client on loopback that no proxy stands in front of


@dataclass(frozen=True, slots=True)
class Rule:
    """One row.  A path that ends in "/" stands for everything below it.  `endpoint`: an inference endpoint, which the
    edge hands to the data plane without FastAPI."""

    method: str
    path: str
    access: Access
    endpoint: Endpoint | None = None


RULES = (
    *(Rule("POST", endpoint.value, Access.KEY, endpoint) for endpoint in Endpoint),
    Rule("POST", "/v1/tokenize", Access.KEY, Endpoint.TOKENIZE),
    Rule("GET", "/v1/models", Access.KEY),
    Rule("GET", "/v1/models/", Access.KEY),
    Rule("GET", "/openapi.json", Access.KEY),
    Rule("GET", "/livez", Access.OPEN),
    Rule("GET", "/readyz", Access.OPEN),
    Rule("GET", "/metrics", Access.OBSERVER),
    Rule("GET", "/admin/v1/openapi.json", Access.ADMIN),
    Rule("GET", "/admin/v1/upstreams", Access.ADMIN),
    Rule("GET", "/admin/v1/adapters", Access.ADMIN),
    Rule("GET", "/admin/v1/config", Access.ADMIN),
)


class RouteTable:
    """Finds the rule for a request."""

    def __init__(self, rules: tuple[Rule, ...] = RULES) -> None:
        self._exact: dict[str, dict[str, Rule]] = {}
        self._below: list[tuple[str, dict[str, Rule]]] = []
        for rule in rules:
            if rule.path.endswith("/"):
                self._below.append((rule.path, {rule.method: rule}))
            else:
                self._exact.setdefault(rule.path, {})[rule.method] = rule

    def methods(self, path: str) -> dict[str, Rule] | None:
        """Method → rule for a path, None where there is no such path."""
        found = self._exact.get(path)
        if found is None:
            for prefix, methods in self._below:
                if path.startswith(prefix) and len(path) > len(prefix):
                    return methods
        return found
