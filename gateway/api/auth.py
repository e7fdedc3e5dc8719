"""Who asks: the key in the headers → a principal, or a refusal."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

from gateway.api.routes import Access
from gateway.domain.errors import Forbidden, InvalidRequest, Unauthenticated
from gateway.domain.principal import ANONYMOUS, Principal
from gateway.domain.snapshot import Snapshot

_MAX_KEY = 512
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
    """Lets a request in or raises Unauthenticated or Forbidden.

    A key is looked up by its SHA-256 digest, so that the time a look-up takes says nothing about keys that exist.
    `client` is the address of the connection's other end.
    """
    if access is Access.OPEN:
        return ANONYMOUS
    if access is Access.KEY:
        if not snapshot.auth_required:
            return ANONYMOUS
        key = presented_key(headers)
        if key is None:
            raise Unauthenticated("No API key: send it as 'Authorization: Bearer <key>'.", code="missing_api_key")
        digest = hashlib.sha256(key).digest()
        principal = snapshot.keys.get(digest)
        if principal is None:
            raise Unauthenticated("The API key is not valid.")
        return principal
    if access is Access.OBSERVER and is_local(headers, client):
        return ANONYMOUS
    if snapshot.admin_key is None:
        raise Forbidden("There is no admin key: set auth.admin_key in the configuration to use this.")
    key = presented_key(headers)
    if key is None:
        raise Unauthenticated("This needs the admin key: send it as 'Authorization: Bearer <key>'.")
    if not hmac.compare_digest(hashlib.sha256(key).digest(), snapshot.admin_key):
        raise Unauthenticated("The admin key is not valid.")
    return Principal("admin")


def is_local(headers: dict[bytes, bytes], client: str) -> bool:
    """Whether the request comes from this host itself, and not through a proxy on it."""
    try:
        loopback = ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False
    return loopback and not any(name in headers for name in _PROXIED)
