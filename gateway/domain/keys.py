"""The gateway's own API keys: how one is written, and what is known of one without keeping it.

    sk-lgw-  k3J9xQ2b  7fT…(33 characters)…  0aZ4Kd
    prefix   id        random                checksum

All but the prefix is base62.  The checksum is the CRC-32 of what stands before it: so scanners find keys without false
alarms, and a key that was mistyped or cut off is known for that without a look-up.
"""

from __future__ import annotations

import hashlib
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.domain.principal import Principal
from gateway.domain.secret import Secret

PREFIX = "sk-lgw-"
ID_LENGTH = 8
#: Bytes that `make` needs: so many more than it can use that each character is as likely as any other.
RANDOM_BYTES = 48
_SECRET_LENGTH = 33  # log2(62) · 33 = 196 bits
_CHECK_LENGTH = 6
_BLOCK = 64  # bytes of SHA-256's block, by which HMAC is defined (RFC 2104)

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PAIRS = tuple((first + second).encode() for first in _ALPHABET for second in _ALPHABET)
_PREFIX = PREFIX.encode()
_LENGTH = len(_PREFIX) + ID_LENGTH + _SECRET_LENGTH + _CHECK_LENGTH


def make(random: bytes, id: str = "") -> Secret:
    """A key from at least RANDOM_BYTES random bytes; with `id`, another key of that id.  Raises ValueError."""
    if len(random) < RANDOM_BYTES:
        raise ValueError(f"a key is made of at least {RANDOM_BYTES} random bytes")
    drawn = _base62(int.from_bytes(random), ID_LENGTH + _SECRET_LENGTH)
    body = f"{PREFIX}{id or drawn[:ID_LENGTH]}{drawn[ID_LENGTH:]}".encode()
    return Secret((body + _check(body)).decode())


def parse(key: bytes) -> str:
    """The public id in a key of ours.  Raises ValueError for what is none, or was mistyped or cut off."""
    if not is_ours(key) or is_malformed(key):
        raise ValueError("not a key of this form")
    return key[len(_PREFIX) : len(_PREFIX) + ID_LENGTH].decode()


def is_ours(key: bytes) -> bool:
    """Whether it begins as the gateway's own keys do."""
    return key.startswith(_PREFIX)


def is_malformed(key: bytes) -> bool:
    """Whether what begins as a key of ours cannot be one."""
    return len(key) != _LENGTH or _check(key[:-_CHECK_LENGTH]) != key[-_CHECK_LENGTH:]


def _check(body: bytes) -> bytes:
    rest, low = divmod(zlib.crc32(body), 3844)
    high, middle = divmod(rest, 3844)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(digits)


class Pepper:
    """What keys are hashed with: HMAC-SHA256(pepper, key).  A digest is of no use to whoever does not have it."""

    __slots__ = ("_inner", "_outer", "name")

    def __init__(self, secret: Secret) -> None:
        pepper = secret.reveal().encode()
        block = (pepper if len(pepper) <= _BLOCK else hashlib.sha256(pepper).digest()).ljust(_BLOCK, b"\0")
        # HMAC by its definition: with both halves begun beforehand it takes two thirds of the library's time.
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))
        #: Tells this pepper from others, and says nothing about it.
        self.name = self.digest(b"the name of this pepper").hex()[:16]

    def digest(self, key: bytes) -> bytes:
        """What is kept of a key."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(key)
        outer.update(inner.digest())
        return outer.digest()

    def __repr__(self) -> str:
        return "Pepper(***)"


#: For where no keys are.
UNPEPPERED = Pepper(Secret(""))


@dataclass(frozen=True, slots=True)
class KeyTable:
    """Who is let in.  `principals`: a key's digest → who it is; `admin`: the admin key's digest.  `partial`: whether
    there may be keys of ours that are not among them."""

    pepper: Pepper = UNPEPPERED
    principals: Mapping[bytes, Principal] = field(default_factory=lambda: MappingProxyType({}))
    admin: bytes | None = None
    partial: bool = False


NO_KEYS = KeyTable()
