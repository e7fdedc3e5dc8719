"""Reads the header of a safetensors file and trusts nothing in it.

The format (https://huggingface.co/docs/safetensors): a little-endian u64 N, N bytes of JSON, then the tensors' bytes.
The JSON maps names to {"dtype", "shape", "data_offsets"}; offsets count from the end of the header, and the tensors
cover what follows it without gap or overlap. Where other readers are lenient (duplicate names, unknown fields), this
one refuses: two readers that understand a file differently are how a check is passed with one content and another one
served.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, TypeGuard

from adapters.strict_json import StrictJsonError, loads

# Bits of an element, as safetensors 0.8 names the types.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# A 70B model's adapter over all modules has a header of 200 KB.
MAX_HEADER_BYTES = 8 << 20

# An adapter over every expert of a mixture of 128, as peft writes it, has 40,000 tensors.
MAX_TENSORS = 1 << 16

MAX_DIMENSIONS = 8
_MAX_COMMAS = 20_000  # in the metadata
_LENGTH_BYTES = 8
_MAX_SIZE = 1 << 63  # of anything counted here: what a signed 64-bit offset holds
_FIELDS = {"dtype", "shape", "data_offsets"}


class SafetensorsError(ValueError):
    """The file is no valid safetensors file; the text says where it breaks."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its bytes are [begin, end) of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: BinaryIO, size: int, max_header: int = MAX_HEADER_BYTES) -> tuple[Tensor, ...]:
    """The tensors of a file of `size` bytes, in the order of their bytes. Raises SafetensorsError."""
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise SafetensorsError(f"the file has {len(prefix)} bytes, not even the {_LENGTH_BYTES} of a header's length")
    length = int.from_bytes(prefix, "little")
    if length > max_header:
        raise SafetensorsError(f"the header claims {length} bytes, more than {max_header}")
    if length > size - _LENGTH_BYTES:
        raise SafetensorsError(f"the header claims {length} bytes, the file has {size - _LENGTH_BYTES} left")
    header = file.read(length)
    if len(header) < length:
        raise SafetensorsError("the file ends within its header")
    return parse_header(header, size - _LENGTH_BYTES - length)


def parse_header(header: bytes, payload: int) -> tuple[Tensor, ...]:
    """The tensors that `header`, followed by `payload` bytes, describes. Raises SafetensorsError."""
    tensors = [
        _tensor(name, entry, offset=_LENGTH_BYTES + len(header))
        for name, entry in _load(header).items()
        if name != "__metadata__"
    ]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    position = start = _LENGTH_BYTES + len(header)
    for tensor in tensors:
        if tensor.begin != position:
            kind = "overlaps the one before" if tensor.begin < position else "leaves a gap before"
            raise SafetensorsError(f"tensor {tensor.name!a} {kind} it at byte {tensor.begin - start} of the data")
        position = tensor.end
    if position != start + payload:
        raise SafetensorsError(f"the tensors describe {position - start} bytes of data, the file has {payload}")
    return tuple(tensors)


def _load(header: bytes) -> dict[str, object]:
    if not header.startswith(b"{"):
        raise SafetensorsError("the header does not begin with '{'")
    # Before it becomes objects of a hundred times its size, in one long call that lets no other thread run: a tensor
    # is a name, three fields and two short lists; the rest is metadata, which may hold some text.
    if sum(map(header.count, (b"{", b"[", b":"))) > 8 * MAX_TENSORS:
        raise SafetensorsError(f"the header describes more than {MAX_TENSORS} tensors")
    if header.count(b",") > 16 * header.count(b"{") + _MAX_COMMAS:
        raise SafetensorsError("the header lists more than tensors")
    try:
        entries = loads(header)
    except StrictJsonError as error:
        raise SafetensorsError(f"the header is no JSON of one meaning ({error})") from error
    if not isinstance(entries, dict):  # `{` opens an object: only here for the type
        raise SafetensorsError("the header is not an object")
    metadata = entries.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsError("__metadata__ is not a map of strings")
    return entries


def _tensor(name: str, entry: object, offset: int) -> Tensor:
    label = f"tensor {name[:200]!a}"
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise SafetensorsError(f"{label} does not have exactly the fields dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise SafetensorsError(f"{label} has an unknown dtype")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise SafetensorsError(f"{label} has a shape that is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        raise SafetensorsError(f"{label} has data_offsets that are not two sizes")
    begin, end = offsets
    bits = prod(shape) * DTYPE_BITS[dtype]
    # Other readers multiply the sizes in 64 bits, one after the other, and stop at an overflow also before a zero.
    overflows = prod(filter(None, shape)) * DTYPE_BITS[dtype] >= _MAX_SIZE
    if begin > end or overflows or bits != (end - begin) * 8:
        raise SafetensorsError(f"{label} ({dtype}, shape {shape}) does not fill its data_offsets {offsets}")
    return Tensor(name, dtype, tuple(shape), offset + begin, offset + end)


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < _MAX_SIZE for size in value)
