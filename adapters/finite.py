"""Looks through the values of a tensor for what no engine must load.

vLLM takes a NaN adapter without a word, and its KV blocks then spoil other requests' answers. A value that is finite
here but not in float16 does the same there. Looking at one byte of each element is enough: the sign and the upper bits
of the exponent. Slicing that byte out and finding it in a table are loops in C, so that 20 MB take some 5 ms.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import frexp, ldexp
from typing import BinaryIO

from adapters.safetensors import Tensor

# No weight of a trained adapter comes near this; twice as much is infinite in float16.
LIMIT = 32768.0

_CHUNK = 1 << 18  # bytes; a multiple of every element's size


@dataclass(frozen=True, slots=True)
class _Format:
    """A little-endian float of `size` bytes, as `struct` names it after `padding` in front of the element."""

    size: int
    code: str
    padding: bytes = b""


_FORMATS: Mapping[str, _Format] = {
    "BF16": _Format(2, "<f", b"\0\0"),
    "F16": _Format(2, "<e"),
    "F32": _Format(4, "<f"),
    "F64": _Format(8, "<d"),
}

SCANNABLE = frozenset(_FORMATS)


@dataclass(frozen=True, slots=True)
class Values:
    """What a scan saw: the first value that is NaN, infinite or beyond the bound, with its index; or that all are 0."""

    index: int | None = None
    value: float = 0.0
    zero: bool = False


def scan(file: BinaryIO, tensor: Tensor, scale: float = 1.0) -> Values:
    """Reads the tensor (of a dtype in SCANNABLE) from the file. Raises EOFError when the file has become shorter.

    `scale` is what an engine multiplies the tensor by when it loads it: found is what reaches LIMIT then, or comes
    within a factor of four of that.
    """
    kind = _FORMATS[tensor.dtype]
    bound = struct.pack(kind.code, _bound(scale))
    least, second = bound[-1], bound[-2]
    over = bytes((byte & 0x7F) >= least + (second > 0) for byte in range(256))
    zero = True
    file.seek(tensor.begin)
    for begin in range(tensor.begin, tensor.end, _CHUNK):
        wanted = min(_CHUNK, tensor.end - begin)
        chunk = file.read(wanted)
        if len(chunk) < wanted:
            raise EOFError(f"the file ends within tensor {tensor.name!a}")
        last = chunk[kind.size - 1 :: kind.size]
        found = last.translate(over).find(1)
        if second and found < 0:
            found = _edge(last, chunk[kind.size - 2 :: kind.size], least, second)
        if found >= 0:
            element = chunk[found * kind.size : (found + 1) * kind.size]
            (value,) = struct.unpack(kind.code, kind.padding + element)
            return Values((begin - tensor.begin) // kind.size + found, value)
        zero = zero and not chunk.lstrip(b"\0")
    return Values(zero=zero)


def _bound(scale: float) -> float:
    """LIMIT / |scale|, at most LIMIT, down to an odd power of two: in float32 its upper byte then tells alone."""
    exponent = frexp(LIMIT / min(max(1.0, abs(scale)), LIMIT))[1] - 1
    return ldexp(1.0, exponent - (exponent + 1) % 2)


def _edge(last: bytes, before: bytes, equal: int, least: int) -> int:
    """The first index where `last` without the sign is `equal` and `before` at least `least`, or -1."""
    one = last.translate(bytes((byte & 0x7F) == equal for byte in range(256)))
    other = before.translate(bytes(byte >= least for byte in range(256)))
    both = int.from_bytes(one, "little") & int.from_bytes(other, "little")
    return both.to_bytes(len(one), "little").find(1)
