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
    """One row.  In a path `{…}` stands for one segment; a path that ends in "/" stands for everything below it.
    `endpoint`: an inference endpoint, which the edge hands to the data plane without FastAPI.  `upload`: the body goes
    to the disk piece by piece, and may be as large as EdgeLimits.max_upload_bytes says."""

    method: str
    path: str
    access: Access
    endpoint: Endpoint | None = None
    upload: bool = False


_ADAPTERS = "/admin/v1/adapters"
_ADAPTER = _ADAPTERS + "/{name}"
_KEYS = "/admin/v1/keys"
_KEY = _KEYS + "/{id}"

RULES = (
    *(Rule("POST", endpoint.value, Access.KEY, endpoint) for endpoint in Endpoint),
    Rule("POST", "/v1/tokenize", Access.KEY, Endpoint.TOKENIZE),
    Rule("GET", "/v1/models", Access.KEY),
    Rule("GET", "/v1/models/", Access.KEY),
    Rule("GET", "/models", Access.KEY),
    Rule("POST", "/models", Access.KEY),
    Rule("DELETE", "/models", Access.KEY),
    Rule("POST", "/models/load", Access.KEY),
    Rule("POST", "/models/unload", Access.KEY),
    Rule("GET", "/openapi.json", Access.KEY),
    Rule("GET", "/livez", Access.OPEN),
    Rule("GET", "/readyz", Access.OPEN),
    Rule("GET", "/metrics", Access.OBSERVER),
    Rule("GET", "/admin/v1/openapi.json", Access.ADMIN),
    Rule("GET", "/admin/v1/upstreams", Access.ADMIN),
    Rule("GET", "/admin/v1/config", Access.ADMIN),
    Rule("GET", "/admin/v1/audit", Access.ADMIN),
    Rule("GET", _KEYS, Access.ADMIN),
    Rule("POST", _KEYS, Access.ADMIN),
    Rule("GET", _KEY, Access.ADMIN),
    Rule("PATCH", _KEY, Access.ADMIN),
    Rule("DELETE", _KEY, Access.ADMIN),
    Rule("POST", _KEY + "/rotate", Access.ADMIN),
    Rule("GET", _ADAPTERS, Access.ADMIN),
    Rule("POST", _ADAPTERS, Access.ADMIN),
    Rule("GET", _ADAPTER, Access.ADMIN),
    Rule("PATCH", _ADAPTER, Access.ADMIN),
    Rule("DELETE", _ADAPTER, Access.ADMIN),
    Rule("PUT", _ADAPTER + "/archive", Access.ADMIN, upload=True),
    Rule("POST", _ADAPTER + "/promote", Access.ADMIN),
    Rule("POST", _ADAPTER + "/rollback", Access.ADMIN),
    Rule("POST", _ADAPTER + "/canary", Access.ADMIN),
    Rule("POST", _ADAPTER + "/load", Access.ADMIN),
    Rule("POST", _ADAPTER + "/unload", Access.ADMIN),
    Rule("DELETE", _ADAPTER + "/versions/{version}", Access.ADMIN),
    Rule("GET", "/admin/v1/imports/{id}", Access.ADMIN),
)


class RouteTable:
    """Finds the rule for a request."""

    def __init__(self, rules: tuple[Rule, ...] = RULES) -> None:
        self._exact: dict[str, dict[str, Rule]] = {}
        self._shaped: dict[tuple[str, ...], dict[str, Rule]] = {}
        self._below: dict[str, dict[str, Rule]] = {}
        for rule in rules:
            if rule.path.endswith("/"):
                self._below.setdefault(rule.path, {})[rule.method] = rule
            elif "{" in rule.path:
                self._shaped.setdefault(tuple(rule.path.split("/")), {})[rule.method] = rule
            else:
                self._exact.setdefault(rule.path, {})[rule.method] = rule

    def methods(self, path: str) -> dict[str, Rule] | None:
        """Method → rule for a path, None where there is no such path."""
        found = self._exact.get(path)
        if found is not None:
            return found
        segments = path.split("/")
        for shape, methods in self._shaped.items():
            if len(shape) == len(segments) and all(map(_fits, shape, segments)):
                return methods
        for prefix, methods in self._below.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return methods
        return None

    def takes_upload(self, method: str, path: str) -> bool:
        """Whether the body of this request is an upload."""
        rule = (self.methods(path) or {}).get(method)
        return rule is not None and rule.upload


def _fits(part: str, segment: str) -> bool:
    return bool(segment) if part.startswith("{") else part == segment
