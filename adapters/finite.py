"""Looks through the values of a tensor for what no engine must load.

vLLM takes a NaN adapter without a word, and its KV blocks then spoil other requests' answers. A value that is finite
here but not in float16 does the same there. Looking at one byte of each element is enough: the sign and the upper bits
of the exponent. Slicing that byte out and finding it in a table are loops in C, so that 20 MB take some 5 ms.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from adapters.safetensors import Tensor

# No weight of a trained adapter comes near this; twice as much is infinite in float16.
LIMIT = 32768.0

_CHUNK = 1 << 18  # bytes; a multiple of every element's size


@dataclass(frozen=True, slots=True)
class _Format:
    """Where a little-endian float of `size` bytes shows that |x| >= LIMIT (NaN and Inf included).

    It does when its last byte without the sign is at least `last`; or, for the one type whose exponent does not reach
    that bound within a byte, when that byte is one less and the byte before is at least `second`.
    """

    size: int
    last: int
    second: int | None
    code: str  # of struct
    padding: bytes  # in front of the element, to make it what `code` reads


_FORMATS: Mapping[str, _Format] = {
    "BF16": _Format(2, 0x47, None, "<f", b"\0\0"),
    "F16": _Format(2, 0x78, None, "<e", b""),
    "F32": _Format(4, 0x47, None, "<f", b""),
    "F64": _Format(8, 0x41, 0xE0, "<d", b""),
}

SCANNABLE = frozenset(_FORMATS)


@dataclass(frozen=True, slots=True)
class Values:
    """What a scan saw: the first value that is NaN, infinite or at least LIMIT, with its index; or that all are 0."""

    index: int | None = None
    value: float = 0.0
    zero: bool = False


def scan(file: BinaryIO, tensor: Tensor) -> Values:
    """Reads the tensor (of a dtype in SCANNABLE) from the file. Raises EOFError when the file has become shorter."""
    kind = _FORMATS[tensor.dtype]
    over = bytes((byte & 0x7F) >= kind.last for byte in range(256))
    zero = True
    file.seek(tensor.begin)
    for begin in range(tensor.begin, tensor.end, _CHUNK):
        wanted = min(_CHUNK, tensor.end - begin)
        chunk = file.read(wanted)
        if len(chunk) < wanted:
            raise EOFError(f"the file ends within tensor {tensor.name!a}")
        last = chunk[kind.size - 1 :: kind.size]
        found = last.translate(over).find(1)
        if kind.second is not None and found < 0:
            found = _edge(last, chunk[kind.size - 2 :: kind.size], kind.last - 1, kind.second)
        if found >= 0:
            element = chunk[found * kind.size : (found + 1) * kind.size]
            (value,) = struct.unpack(kind.code, kind.padding + element)
            return Values((begin - tensor.begin) // kind.size + found, value)
        zero = zero and not chunk.lstrip(b"\0")
    return Values(zero=zero)


def _edge(last: bytes, before: bytes, equal: int, least: int) -> int:
    """The first index where `last` without the sign is `equal` and `before` at least `least`, or -1."""
    one = last.translate(bytes((byte & 0x7F) == equal for byte in range(256)))
    other = before.translate(bytes(byte >= least for byte in range(256)))
    both = int.from_bytes(one, "little") & int.from_bytes(other, "little")
    return both.to_bytes(len(one), "little").find(1)
