"""JSON of upstreams: read with orjson, changed as bytes."""

from __future__ import annotations

from typing import Any

import orjson


def rename_model(raw: bytes, parsed: dict[str, Any], name: str) -> bytes:
    """`raw` with its top-level `model` set to `name`, every other byte untouched.

    `raw` is the text that `parsed` was read from.  Only when the model stands where its bytes cannot be told from a
    nested one (behind a nested object, or with unusual white space) is the whole object written anew.
    """
    model = parsed.get("model")
    if model is None or model == name:
        return raw
    old, new = orjson.dumps(model), orjson.dumps(name)
    nested = raw.find(b"{", 1)
    array = raw.find(b"[")
    limit = min(nested if nested >= 0 else len(raw), array if array >= 0 else len(raw))
    for key in (b'"model":', b'"model": ') if isinstance(model, str) else ():
        at = raw.find(key + old, 0, limit)
        # A quote inside a string is escaped, so the pattern cannot stand within one.
        if at >= 0:
            at += len(key)
            return b"".join((raw[:at], new, raw[at + len(old) :]))
    return orjson.dumps({**parsed, "model": name})
