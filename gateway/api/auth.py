"""Who asks: the key in the headers → a principal, or a refusal."""

from __future__ import annotations

import hmac
import ipaddress
import time

from gateway.api.routes import Access
from gateway.domain.errors import Forbidden, InvalidRequest, StorageAway, Unauthenticated
from gateway.domain.keys import is_malformed, is_ours
from gateway.domain.principal import ANONYMOUS, Principal
from gateway.domain.snapshot import Snapshot

#: Whoever has the admin key.
ADMIN = Principal("admin")

_MAX_KEY = 512
_MISSING = "missing_api_key"
_CREDENTIALS = (b"authorization", b"x-api-key", b"api-key")
_PROXIED = (b"x-forwarded-for", b"forwarded", b"x-real-ip")


def presented_key(headers: dict[bytes, bytes]) -> bytes | None:
    """The key that a request carries: `Authorization: Bearer`, `x-api-key` or Azure's `api-key`.

    Raises InvalidRequest for more than one, because two parts of a system might each believe another one.
    """
    found = [name for name in _CREDENTIALS if name in headers]
    if len(found) > 1:
        raise InvalidRequest("Send one credential: either Authorization or x-api-key.", code="two_credentials")
    if not found:
        return None
    value = headers[found[0]]
    if found[0] == b"authorization":
        scheme, _, value = value.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated("The Authorization header must be 'Bearer' and a key.")
    value = value.strip()
    return value if 0 < len(value) <= _MAX_KEY else b""


def authorise(snapshot: Snapshot, access: Access, headers: dict[bytes, bytes], client: str) -> Principal:
    """Lets a request in or raises Unauthenticated or Forbidden, and StorageAway for a key that only the main database
    could tell.

    A key is looked up by its digest, so that the time a look-up takes says nothing about keys that exist; all take the
    same path, and one that was revoked is one that never was.  `client` is the address of the connection's other end.
    """
    if access is Access.OPEN:
        return ANONYMOUS
    if access is Access.KEY:
        if not snapshot.auth_required:
            return ANONYMOUS
        key = presented_key(headers)
        if key is None:
            raise Unauthenticated("No API key: send it as 'Authorization: Bearer <key>'.", code=_MISSING)
        principal = snapshot.keys.get(snapshot.pepper.digest(key))
        if principal is None:
            typo = is_ours(key) and is_malformed(key)
            if snapshot.keys_partial and is_ours(key) and not typo:
                raise StorageAway("The main database is away, and without it this key is not known here: try again.")
            raise Unauthenticated("The API key is not valid" + (": it was mistyped or cut off." if typo else "."))
        if principal.expires is not None and time.time() >= principal.expires:
            raise Unauthenticated("The API key has expired.", code="api_key_expired")
        return principal
    if access is Access.OBSERVER and is_local(headers, client):
        return ANONYMOUS
    if snapshot.admin_key is None:
        raise Forbidden("There is no admin key: set auth.admin_key in the configuration to use this.")
    key = presented_key(headers)
    if key is None:
        raise Unauthenticated("This needs the admin key: send it as 'Authorization: Bearer <key>'.", code=_MISSING)
    if not hmac.compare_digest(snapshot.pepper.digest(key), snapshot.admin_key):
        raise Unauthenticated("The admin key is not valid.")
    return ADMIN


def is_local(headers: dict[bytes, bytes], client: str) -> bool:
    """Whether the request comes from this host itself, and not through a proxy on it."""
    try:
        loopback = ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False
    return loopback and not any(name in headers for name in _PROXIED)
