"""Sizes as people write them: 5GB, 500MB, 2GiB, 1000000."""

import re

from adapters.merge.errors import MergeError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([A-Z]{0,3})", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes, at least one. Raises MergeError."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise MergeError(f"{text!a} is no size: write it as 5GB, 500MB or a number of bytes")
    return size
