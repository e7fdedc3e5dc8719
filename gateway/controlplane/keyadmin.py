"""What administrators do with keys.  An act is durable, in the audit and in force when it returns."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, is_dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol, cast

from gateway.controlplane.accounts import ClientKey
from gateway.controlplane.keyring import Move
from gateway.controlplane.keys import KeyRecord, Settings, configured, revoked, rotated
from gateway.controlplane.plane import ControlPlane
from gateway.domain import keys
from gateway.domain.audit import Act, Actor
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.limits import Budget, Limits
from gateway.domain.money import MILLION
from gateway.domain.secret import Secret

Page = dict[str, Any]


class Requests(Protocol):
    """The data plane's running requests."""

    def end_key(self, key: str, kept: Collection[int]) -> None:
        """Ends those of this key, but for those that showed a secret of these rotations."""
        ...


class KeyAdmin:
    """The life of keys, for the edge (`gateway.api.keys.KeyAdmin` says what each method promises)."""

    def __init__(self, plane: ControlPlane, requests: Requests) -> None:
        self._plane = plane
        self._keyring = plane.keys
        self._requests = requests
        plane.keys.feel(self._felt)

    async def rows(self, after: str, limit: int) -> tuple[list[Page], bool]:
        ids = [*self._keyring.static, *self._keyring.records]
        if after and after not in self._keyring.records and after not in self._keyring.static:
            raise InvalidRequest(f"after: there is no key '{after[:80]}'.", param="after")
        first = ids.index(after) + 1 if after else 0
        chosen = list(islice(ids, first, first + limit))
        return [self._page(id) for id in chosen], first + limit < len(ids)

    async def show(self, id: str) -> Page:
        return self._page(self._found(id))

    async def create(self, settings: Mapping[str, Any], by: Actor) -> Page:
        now, given = int(time.time()), self._checked(settings)
        secret, id = self._secret()

        def made(_: KeyRecord | None) -> tuple[KeyRecord, Act]:
            record = KeyRecord(id=id, digest=self._digest(secret), pepper=self._pepper, created=now, **given)
            return record, Act(by, "key.create", id, detail=_told(given))

        return self._shown(await self._move(id, made), secret)

    async def configure(self, id: str, settings: Mapping[str, Any], by: Actor) -> Page:
        given = self._checked(settings)

        def moved(record: KeyRecord) -> tuple[KeyRecord, Act]:
            return configured(record, **given), Act(by, "key.configure", record.id, detail=_told(given))

        return self._page((await self._change(id, moved)).id)

    async def rotate(self, id: str, grace: int, by: Actor) -> Page:
        found = self._changeable(id)
        secret, _ = self._secret(found)
        now = int(time.time())

        def moved(record: KeyRecord) -> tuple[KeyRecord, Act]:
            after = rotated(record, self._digest(secret), self._pepper, now=now, grace=grace)
            return after, Act(by, "key.rotate", record.id, detail={"grace": grace, "rotation": after.rotation})

        return self._shown(await self._change(found, moved), secret)

    async def revoke(self, id: str, by: Actor) -> Page:
        now = int(time.time())

        def moved(record: KeyRecord) -> tuple[KeyRecord, Act]:
            return revoked(record, now=now), Act(by, "key.revoke", record.id, detail={"name": record.name})

        return self._page((await self._change(id, moved)).id)

    async def _change(self, id: str, move: Callable[[KeyRecord], tuple[KeyRecord, Act]]) -> KeyRecord:
        return await self._move(self._changeable(id), lambda record: move(cast(KeyRecord, record)))

    async def _move(self, id: str, move: Move) -> KeyRecord:
        """Durable, then published, then felt by what runs."""

        def moved(after: KeyRecord) -> None:
            self._felt({id: after.live(time.time())})

        try:
            return await self._keyring.move(id, move, moved)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None

    def _felt(self, live: Mapping[str, Collection[int]]) -> None:
        try:
            self._plane.advance()
        finally:
            for id, rotations in live.items():
                self._requests.end_key(id, rotations)

    def _changeable(self, id: str) -> str:
        """As `_found`.  Raises Conflict for a key of the file."""
        found = self._found(id)
        if found not in self._keyring.records:
            raise Conflict(f"The key {found} is of the configuration file: it is changed there.")
        return found

    def _found(self, id: str) -> str:
        """The id of the key that is meant, by its id or by the name that it alone has, while it is not revoked."""
        if id in self._keyring.records or id in self._keyring.static:
            return id
        if (named := self._keyring.named(id)) is not None:
            return named.id
        raise NotFound(f"There is no key '{id[:80]}'; `gateway keys list` shows those there are.")

    def _checked(self, settings: Mapping[str, Any]) -> Settings:
        """Raises InvalidRequest."""
        given = dict(settings)
        if "metadata" in given:
            given["metadata"] = MappingProxyType(dict(given["metadata"]))
        if given.get("log_content") and not self._keyring.logs_content:
            raise InvalidRequest(
                "log_content: no file is set for prompts and answers; an operator can set log.content.",
                param="log_content",
            )
        return cast(Settings, given)

    def _secret(self, id: str = "") -> tuple[Secret, str]:
        """A new key and its id."""
        while True:
            secret = keys.make(secrets.token_bytes(keys.RANDOM_BYTES), id)
            drawn = keys.parse(secret.reveal().encode())
            if id or not (drawn in self._keyring.records or drawn in self._keyring.static):
                return secret, drawn

    def _digest(self, secret: Secret) -> bytes:
        return self._keyring.pepper.digest(secret.reveal().encode())

    @property
    def _pepper(self) -> str:
        return self._keyring.pepper.name

    def _shown(self, record: KeyRecord, secret: Secret) -> Page:
        """The one time that a key is shown."""
        return {**self._page(record.id), "key": secret.reveal()}

    def _page(self, id: str) -> Page:
        record = self._keyring.records.get(id)
        return _of_file(self._keyring.static[id]) if record is None else self._of_record(record)

    def _of_record(self, record: KeyRecord) -> Page:
        now = time.time()
        live = record.live(now)
        return {
            "id": record.id,
            "name": record.name,
            "source": "api",
            "state": self._state(record, live),
            "owner": record.owner,
            "team": record.team,
            "models": list(record.models),
            "endpoints": None if record.endpoints is None else list(record.endpoints),
            "allow": list(record.allow),
            **_bounds(record.limits, record.budgets),
            "metadata": dict(record.metadata),
            "created": record.created,
            "expires": record.expires,
            "revoked": record.revoked,
            "rotation": record.rotation,
            "previous_until": record.previous_until if len(live) > 1 else None,
            "log_content": record.log_content,
        }

    def _state(self, record: KeyRecord, live: Collection[int]) -> str:
        if record.revoked is not None:
            return "revoked"
        if record.pepper != self._pepper:
            return "invalid"
        return "active" if live else "expired"


def _of_file(key: ClientKey) -> Page:
    return {
        "id": key.name,
        "name": key.name,
        "source": "file",
        "state": "active",
        "owner": "",
        "team": key.team or "",
        "models": list(key.models),
        "endpoints": None if key.endpoints is None else list(key.endpoints),
        "allow": list(key.allow),
        **_bounds(
            None if key.limits is None else key.limits.of_domain(),
            tuple(budget.of_domain() for budget in key.budgets),
        ),
        "metadata": {},
        "created": None,
        "expires": None,
        "revoked": None,
        "rotation": 0,
        "previous_until": None,
        "log_content": key.log_content,
    }


def _bounds(limits: Limits | None, budgets: tuple[Budget, ...]) -> Page:
    """Limits and budgets as they are set."""
    return {
        "limits": None if limits is None else asdict(limits),
        "budgets": [
            {
                "money": None if budget.money is None else budget.money / MILLION,
                "tokens": budget.tokens,
                "per": budget.period,
            }
            for budget in budgets
        ],
    }


def _told(settings: Settings) -> dict[str, Any]:
    """Settings as the audit tells them."""
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
