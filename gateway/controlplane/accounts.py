"""What the configuration file says of keys, people and teams, and of how much they may use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway.controlplane import values
from gateway.controlplane.section import Section
from gateway.controlplane.values import (
    ModelPattern,
    Name,
    NamePattern,
    Rate,
    RoleName,
    SecretSchema,
    SecretText,
    UserId,
)
from gateway.domain import money
from gateway.domain.limits import MAX_BUDGET, Allowance, Budget, Limits, Period
from gateway.domain.secret import Secret


class LimitSettings(Section):
    """How fast, and how much at once; what is null is not limited."""

    requests_per_minute: Rate | None = None
    """Requests a minute; as many may come at once."""
    tokens_per_minute: Rate | None = None
    """Tokens a minute, of prompts and answers together; as many may come at once."""
    concurrent: Rate | None = None
    """Requests at once."""

    def of_domain(self) -> Limits:
        """As the data plane knows them."""
        return Limits(**self.model_dump())


class BudgetSettings(Section):
    """How much in a period; what is null is not bounded."""

    money: Annotated[float, Field(ge=0, le=1_000_000_000), values.NUMERIC] | None = None
    """In the currency of the prices."""
    tokens: Annotated[int, Field(ge=0, le=MAX_BUDGET), values.NUMERIC] | None = None
    """Tokens, of prompts and answers together."""
    per: Period
    """`day`, `month` (both by the calendar in UTC) or `total`."""

    def of_domain(self) -> Budget:
        """As the data plane knows it."""
        return Budget(None if self.money is None else money.micros(self.money), self.tokens, self.per)


class ScopeSettings(Section):
    """How much somebody may use that has no limits and no budgets of their own."""

    limits: LimitSettings = LimitSettings()
    """How fast, and how much at once."""
    budgets: Annotated[tuple[BudgetSettings, ...], Field(max_length=8)] = ()
    """How much in a period."""

    def of_domain(self) -> Allowance:
        """As the data plane knows it."""
        return Allowance(self.limits.of_domain(), tuple(budget.of_domain() for budget in self.budgets))


class LimitDefaults(Section):
    """How much those may use of whom nothing else is said."""

    key: ScopeSettings = ScopeSettings()
    """Each key that has no limits and no budgets of its own."""
    user: ScopeSettings = ScopeSettings()
    """Each user that has no limits and no budgets of their own."""


class ClientKey(Section):
    """A key that may use `/v1`."""

    name: Name
    """Name of the key's owner, for logs and metrics."""
    key: SecretText
    """The key itself: 16 to 512 visible ASCII characters, from the environment rather than written here."""
    models: Annotated[tuple[ModelPattern, ...], Field(min_length=1, max_length=256)] = ("*",)
    """Names, or patterns of names, that exist for this key.  A version of an adapter goes with its plain name."""
    endpoints: Annotated[tuple[Annotated[str, values.EndpointPath()], ...], Field(min_length=1)] | None = None
    """Paths of the inference endpoints that it may use; null: all."""
    allow: tuple[Annotated[str, values.Right()], ...] = ()
    """What else it may do: send a parameter that reaches into the engine, or (`adapters`) load and eject adapters."""
    team: Name | None = None
    """Name of the team that it belongs to, and with it everybody behind it who is in no other."""
    users: Literal["optional", "required"] = "optional"
    """`required`: each request must prove which person it is for."""
    log_content: bool = False
    """Whether its prompts and answers are written to `log.content`.  Each answer says so in a header."""
    limits: LimitSettings | None = None
    """How fast, and how much at once; null: `limits.defaults.key`, unless it has budgets."""
    budgets: Annotated[tuple[BudgetSettings, ...], Field(max_length=8)] = ()
    """How much in a period."""


class Auth(Section):
    """Who may use the gateway."""

    required: bool = True
    """Whether `/v1` needs a key.  false is possible on loopback only."""
    admin_key: SecretText | None = None
    """The key of `/admin` and `/metrics`.  Without it `/admin` is closed and `/metrics` answers loopback only."""
    keys: tuple[ClientKey, ...] = ()
    """Keys of `/v1` that never change; more are made at run time."""
    pepper: SecretText | None = None
    """What keys are hashed with; null: a file beside the storage, made once."""


class UsersOfOpenWebUI(Section):
    """How Open WebUI proves who asks."""

    jwt_secret: SecretText | None = None
    """Its FORWARD_USER_INFO_HEADER_JWT_SECRET: 32 to 512 visible ASCII characters, from the environment."""
    issuer: Annotated[str, values.Pattern(r"[^\s\x00-\x1f\x7f]{1,256}", "write it as the token has it")] = "open-webui"
    """What `iss` must be in its tokens."""


class Users(Section):
    """Who the people behind a key are, and what they may do."""

    openwebui: UsersOfOpenWebUI = UsersOfOpenWebUI()
    """How Open WebUI proves who asks."""
    trusted_headers: bool = False
    """Whether nobody but Open WebUI reaches the gateway, so that its plain headers are believed."""
    roles: dict[RoleName, tuple[Annotated[str, values.Right()], ...]] = {}
    """Role in Open WebUI (`admin`, `user`) → rights that people with it have beyond those of the key."""
    models: dict[RoleName, Annotated[tuple[ModelPattern, ...], Field(max_length=256)]] = {}
    """Role in Open WebUI → names, or patterns of names, that people with it may use; all, where a role is missing."""
    cache: Literal["tenant", "user", "shared"] = "tenant"
    """Whose prompts share the prefix cache of a vLLM: `tenant` (a team's, else a key's), `user` or `shared`."""
    cache_secret: SecretText | None = None
    """What cache salts are derived from, the same for all gateways before one engine; null: made at each start."""


class TeamSettings(Section):
    """People and keys that count as one."""

    name: Name
    """Name of the team, for logs and reports."""
    members: Annotated[tuple[NamePattern, ...], Field(max_length=4096)] = ()
    """Ids or email addresses, or patterns of them, of the people in it."""
    groups: Annotated[tuple[NamePattern, ...], Field(max_length=256)] = ()
    """Names, or patterns of names, of groups in Open WebUI whose members are in it."""
    models: Annotated[tuple[ModelPattern, ...], Field(min_length=1, max_length=256)] = ("*",)
    """Names, or patterns of names, that the team may use."""
    limits: LimitSettings = LimitSettings()
    """How fast, and how much at once, all of them together."""
    budgets: Annotated[tuple[BudgetSettings, ...], Field(max_length=8)] = ()
    """How much in a period, all of them together."""

    def of_domain(self) -> Allowance:
        """What the team may use, as the data plane knows it."""
        return ScopeSettings(limits=self.limits, budgets=self.budgets).of_domain()


class LimitsStore(Section):
    """Where limits are counted, and how much everybody may use."""

    url: Annotated[Secret, SecretSchema(header=False), AfterValidator(values.limits_url)] = Field(
        default="memory://", validate_default=True
    )
    """`memory://`: in this process.  `redis://` or `valkey://` (with TLS `rediss://`), with `user:password@` before the
    host and `/number` of the database after it: by all gateways that are given the same."""
    timeout: Annotated[float, Field(ge=0.005, le=10), values.NUMERIC] = 0.05
    """Seconds that an answer from there may take, before the limits are counted in this process."""
    replicas: Annotated[int, Field(ge=1, le=1000), values.NUMERIC] = 1
    """Gateways that share the limits, as long as the store has never been reached; then it says how many there are."""
    defaults: LimitDefaults = LimitDefaults()
    """How much those may use of whom nothing else is said."""
    users: dict[UserId, ScopeSettings] = {}
    """Id of a user → how much that one may use, in place of `defaults.user`."""
