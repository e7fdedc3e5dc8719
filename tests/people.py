"""People behind a key, as Open WebUI presents them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt

SECRET = "w3bUi-signs-0f7c1d5a92e84b36-with-this"
ADA = {"sub": "2d95199f-1f70-4690-9b4a-8f98280ca9da", "email": "ada@lab.example.org", "name": "Ada", "role": "admin"}
BOB = {"sub": "671fa9fb-5b0e-4d0c-a5f2-0c1f7a3b9d42", "email": "Bob@Support.example.org", "name": "Bob Ünï 🐧",
       "role": "user"}  # fmt: skip

Header = tuple[str, str]


def claims(person: dict[str, Any] = ADA, **changes: Any) -> dict[str, Any]:
    """The claims of Open WebUI 0.12 (utils/headers.py); None takes one out."""
    now = int(time.time())
    whole = {**person, "iss": "open-webui", "iat": now, "exp": now + 300, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def token(person: dict[str, Any] = ADA, secret: str = SECRET, **changes: Any) -> str:
    """A token as Open WebUI signs it."""
    return jwt.encode(claims(person, **changes), secret, algorithm="HS256")


def handmade(head: Any, payload: Any, secret: str = SECRET) -> str:
    """A rightly signed token of whatever it is made of, bytes or what becomes JSON."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (head, payload)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.digest(secret.encode(), signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def signed(person: dict[str, Any] = ADA, **changes: Any) -> Header:
    """The header with a person's token."""
    return ("x-openwebui-user-jwt", token(person, **changes))


def plain(person: dict[str, Any] = ADA) -> list[Header]:
    """The headers of an Open WebUI without a secret."""
    return [
        ("x-openwebui-user-name", "Ada"),
        ("x-openwebui-user-id", person["sub"]),
        ("x-openwebui-user-email", person["email"]),
        ("x-openwebui-user-role", person["role"]),
    ]
