"""Who is behind a key, which team they belong to, and what follows from it.  Pure.

A call must be allowed three times: by its key, by the team, and by the person's role.  What a key may not use does not
exist for it; what a team or a role may not use is refused when it is asked for, because Open WebUI has one list of
models for all of its users.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from gateway.domain.principal import Principal, permits
from gateway.domain.secret import Secret

_EMPTY: Mapping[str, Any] = MappingProxyType({})
_SALT_BYTES = 16  # nobody guesses one of 2^128, and it is short in each body


class Sharing(StrEnum):
    """Whose requests find each other's prompts in an engine's prefix cache."""

    TENANT = "tenant"  # those of one team; without a team, those of one key
    USER = "user"
    SHARED = "shared"  # everybody's


@dataclass(frozen=True, slots=True)
class User:
    """A person, as somebody says whom the operator trusts with that."""

    id: str
    email: str = ""
    role: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Team:
    """People and keys that count as one.  `members`: patterns of ids and of email addresses (whose case does not
    count); `groups`: of the group names that come with a user; `models`: of the models that they may use."""

    name: str
    members: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    models: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True)
class Bound:
    """Models that somebody may use, as patterns, and whose bound it is, for a sentence."""

    whose: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """What follows from who somebody is.  `verified`: somebody trusted says so, not the request's body."""

    user: str = ""
    verified: bool = False
    roles: frozenset[str] = frozenset()
    team: str = ""
    rights: frozenset[str] = frozenset()
    bounds: tuple[Bound, ...] = ()


NOBODY = Standing()


@dataclass(frozen=True, slots=True)
class People:
    """What the operator says of users and teams.

    `jwt_secret`: signs Open WebUI's user tokens, whose `iss` is `issuer`.  `trusted_headers`: nobody but a trusted
    program reaches the gateway, so that its plain headers are believed.  `rights`, `role_models`: by role.
    `cache_secret`: what cache salts are derived from; None: from one that is made at the start.
    """

    jwt_secret: Secret | None = None
    issuer: str = "open-webui"
    trusted_headers: bool = False
    rights: Mapping[str, frozenset[str]] = field(default_factory=lambda: _EMPTY)
    role_models: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _EMPTY)
    teams: Mapping[str, Team] = field(default_factory=lambda: _EMPTY)
    cache: Sharing = Sharing.TENANT
    cache_secret: Secret | None = None

    @property
    def identifies(self) -> bool:
        """Whether anybody is trusted to say who a user is."""
        return self.jwt_secret is not None or self.trusted_headers

    def standing(self, user: User) -> Standing:
        """What this person is and may.  The team is "" where it is the key's."""
        team = self._team_of(user)
        bounds = []
        if team is not None and team.models != ("*",):
            bounds.append(Bound(f"the team '{team.name}'", team.models))
        if (models := self.role_models.get(user.role)) is not None:
            bounds.append(Bound(f"people with the role '{user.role}'", models))
        return Standing(
            user=user.id,
            verified=True,
            roles=frozenset((user.role,)) if user.role else frozenset(),
            team="" if team is None else team.name,
            rights=self.rights.get(user.role, frozenset()),
            bounds=tuple(bounds),
        )

    def admits(self, principal: Principal, model: str) -> bool:
        """Whether the name exists for this key: a key in a team has what both of them may use."""
        if not principal.may_use(model):
            return False
        team = self.teams.get(principal.team) if principal.team else None
        return team is None or permits(team.models, model)

    def named(self, principal: Principal, user: str) -> str:
        """How a user is called whom nobody but a request's body names.  Where users can be verified, a program's own
        names carry that of its key, so that no body names one of them."""
        return f"{principal.name}/{user}" if user and self.identifies else user

    def _team_of(self, user: User) -> Team | None:
        """The first team with one of the user's groups, else the first that the user is a member of."""
        for team in self.teams.values():
            if any(fnmatchcase(group, pattern) for pattern in team.groups for group in user.groups):
                return team
        email = user.email.lower()
        for team in self.teams.values():
            for pattern in team.members:
                if fnmatchcase(user.id, pattern) or (email and fnmatchcase(email, pattern.lower())):
                    return team
        return None


def cache_salt(secret: bytes, tenant: str, own: str) -> str:
    """The salt that a tenant's requests are sent with.  `own`: the salt that the client sent, which parts its requests
    further; no choice of it leads to another tenant's."""
    return _digest(secret, f"{tenant}\0{own}") if own else _tenants_own(secret, tenant)


@lru_cache(1024)
def _tenants_own(secret: bytes, tenant: str) -> str:
    return _digest(secret, f"{tenant}\0")


def _digest(secret: bytes, text: str) -> str:
    return hmac.digest(secret, text.encode("utf-8", "surrogatepass"), "sha256")[:_SALT_BYTES].hex()
