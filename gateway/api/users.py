"""Who is behind a key: what a request's headers say of the person, and whether that is to be believed.

Open WebUI signs it (`FORWARD_USER_INFO_HEADER_JWT_SECRET`: utils/headers.py of 0.12) or, without a secret, sends it in
plain headers, which anybody can send who reaches the gateway.  So there is at most one source that counts, and what
comes from it is right or refused: never "as if none".
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import jwt

from gateway.dataplane.pipeline import client_of
from gateway.domain.call import Client
from gateway.domain.errors import InvalidRequest, Unauthenticated
from gateway.domain.people import NOBODY, People, Standing, User
from gateway.domain.principal import Principal

TOKEN = b"x-openwebui-user-jwt"
_ID, _EMAIL, _ROLE = (b"x-openwebui-user-" + name for name in (b"id", b"email", b"role"))
_GROUPS = b"x-openwebui-groups"  # the name that docs/users.md gives the header with the template {{USER_GROUPS}}
_MAX_TOKEN = 4096  # bytes; Open WebUI's have some 350
_MAX_VALUE = 256  # characters of an id, an address, a role, a group
_MAX_GROUPS = 8192  # bytes of the header with a person's groups
_LEEWAY = 30  # seconds that two machines' clocks may differ
_REMEMBERED = 1024  # verified tokens

Headers = Mapping[bytes, bytes]


class Identification:
    """Tells who asks.  Verified tokens are remembered until they expire, the least used forgotten first, because a chat
    is several requests at once; `now` is the time in Unix seconds."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._people = People()
        self._verified: OrderedDict[tuple[bytes, bytes], tuple[float, Standing]] = OrderedDict()

    def client(self, people: People, principal: Principal, headers: Headers, *, acts: bool) -> Client:
        """The program that asks and the person behind it.  `acts`: the request does more than to look at a list, so
        that a key which stands for people must say for whom.

        Raises Unauthenticated for a token that does not prove what it says, and where a person is missing;
        InvalidRequest for headers that hold no names.
        """
        if people.jwt_secret is not None:
            standing = NOBODY if (token := headers.get(TOKEN)) is None else self._of_token(people, token, headers)
        elif people.trusted_headers:
            user = _of_headers(headers)
            standing = NOBODY if user is None else people.standing(user)
        else:
            standing = NOBODY
        if principal.users_required and acts and not standing.verified:
            raise Unauthenticated(
                "This key is for people in Open WebUI, and the request does not prove who asks: "
                f"it needs {'X-OpenWebUI-User-Jwt' if people.jwt_secret else 'X-OpenWebUI-User-Id'}.",
                code="user_required",
            )
        return client_of(headers, standing, principal.team)

    def _of_token(self, people: People, token: bytes, headers: Headers) -> Standing:
        if people is not self._people:
            self._people = people
            self._verified.clear()
        groups, now = headers.get(_GROUPS, b"") if people.trusted_headers else b"", self._now()
        known = self._verified.get((token, groups))
        if known is not None and now < known[0]:
            self._verified.move_to_end((token, groups))
            return known[1]
        claims = _claims(people, token)
        if (until := claims["exp"] + _LEEWAY) <= now:
            raise _expired()
        user = User(
            id=_name(claims.get("sub"), needed=True),
            email=_name(claims.get("email")),
            role=_name(claims.get("role")),
            groups=_groups_claim(claims["groups"]) if "groups" in claims else _groups(groups),
        )
        standing = people.standing(user)
        self._verified[token, groups] = (until, standing)
        self._verified.move_to_end((token, groups))
        while len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)
        return standing


def _claims(people: People, token: bytes) -> dict[str, Any]:
    """What a token says that is signed by the secret, in time, and by the right issuer."""
    if len(token) > _MAX_TOKEN or people.jwt_secret is None:
        raise _refused("is longer than any that Open WebUI sends")
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            people.jwt_secret.reveal().encode(),
            algorithms=["HS256"],
            issuer=people.issuer,
            leeway=_LEEWAY,
            options={"require": ["exp", "iss", "sub"]},
        )
    except jwt.ExpiredSignatureError:
        raise _expired() from None
    except jwt.ImmatureSignatureError:
        raise _refused("is from the future: the clocks of Open WebUI and the gateway differ") from None
    except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
        raise _refused(
            "is not signed with the gateway's secret: FORWARD_USER_INFO_HEADER_JWT_SECRET of Open WebUI and "
            "users.openwebui.jwt_secret must be the same"
        ) from None
    except jwt.InvalidIssuerError:
        raise _refused("is of another issuer than users.openwebui.issuer") from None
    except jwt.PyJWTError:
        raise _refused("is not valid: it must be a JWT with exp, iss and sub") from None
    if type(claims["exp"]) not in (int, float):
        raise _refused("is not valid: its claim 'exp' is not a number")
    return claims


def _expired() -> Unauthenticated:
    return _refused("has expired; if that happens again, the clocks of Open WebUI and the gateway differ")


def _refused(what: str) -> Unauthenticated:
    return Unauthenticated(f"The proof of who asks (X-OpenWebUI-User-Jwt) {what}.", code="invalid_user_token")


def _name(claim: object, *, needed: bool = False) -> str:
    """A claim that is to stand in logs and rules."""
    if claim is None and not needed:
        return ""
    if not isinstance(claim, str) or not _is_name(claim) or (needed and not claim):
        raise _refused("is not valid: its claims are not names")
    return claim


def _groups_claim(claim: object) -> tuple[str, ...]:
    if not isinstance(claim, list):
        raise _refused("is not valid: its claim 'groups' is not a list of names")
    return tuple(_name(group, needed=True) for group in claim)


def _of_headers(headers: Headers) -> User | None:
    """The person that plain headers name, None where they name nobody."""
    user = _value(headers, _ID)
    if not user:
        return None
    return User(user, _value(headers, _EMAIL), _value(headers, _ROLE), _groups(headers.get(_GROUPS, b"")))


def _value(headers: Headers, header: bytes) -> str:
    return _decoded(headers.get(header, b""), header)


def _groups(value: bytes) -> tuple[str, ...]:
    """The names of {{USER_GROUPS}}: each percent-encoded, with commas between them."""
    if len(value) > _MAX_GROUPS:
        raise InvalidRequest(f"X-OpenWebUI-Groups is longer than {_MAX_GROUPS} bytes.", code="invalid_header")
    return tuple(name for raw in value.split(b",") if (name := _decoded(raw, _GROUPS)))


def _decoded(raw: bytes, header: bytes) -> str:
    """A header's text, which is percent-encoded where it is not ASCII."""
    try:
        text = unquote(raw.decode("ascii"), errors="strict").strip()
    except UnicodeDecodeError:
        text = "\0"
    if not _is_name(text):
        raise InvalidRequest(
            f"The header {header.decode()} must be at most {_MAX_VALUE} printable characters, percent-encoded UTF-8.",
            code="invalid_header",
        )
    return text


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_VALUE and text.isprintable()
