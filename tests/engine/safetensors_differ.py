"""Lying headers before our reader and before the safetensors library, which vLLM reads with.  Runs in the engine's
environment; needs nothing of it but the library.

    python -m tests.engine.safetensors_differ COUNT SEED

Prints JSON: how many files both took, how many both refused, for each reason how many we alone refused, and examples of
what must not be: {"both", "neither", "stricter": {REASON: N}, "wrong": [[SAID, FILE AS HEX], …]}.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import sys
from collections import Counter
from typing import Any

from safetensors import SafetensorError, deserialize

from adapters.safetensors import DTYPE_BITS, SafetensorsError, read_header

Pairs = list[tuple[str, Any]]  # of an object: a name may stand twice

SIZES = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    -1,
    2**31,
    2**32,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    1.0,
    1e3,
    True,
    None,
]
BYTES = b'0129-+.eE"{}[],:\\ \n\t\0\xff\xc3atDsn'


class Raw(str):
    """JSON as it stands."""


def written(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, list) and value and all(isinstance(entry, tuple) for entry in value):
        return "{" + ", ".join(f"{json.dumps(name)}: {written(entry)}" for name, entry in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def tensors(rng: random.Random) -> tuple[Pairs, int]:
    """A valid header's entries, and the size of the data."""
    entries: Pairs = []
    position = 0
    for number in range(rng.randint(0, 4)):
        dtype = rng.choice(sorted(DTYPE_BITS))
        shape = [rng.choice([0, 1, 1, 2, 3, 4, 8]) for _ in range(rng.randint(0, 3))]
        bits = DTYPE_BITS[dtype]
        for size in shape:
            bits *= size
        if bits % 8:
            continue
        end = position + bits // 8
        entries.append((f"t{number}", [("dtype", dtype), ("shape", shape), ("data_offsets", [position, end])]))
        position = end
    if rng.random() < 0.5:
        rng.shuffle(entries)
    if rng.random() < 0.3:
        entries.insert(rng.randint(0, len(entries)), ("__metadata__", [("format", "pt")]))
    return entries, position


def lie(entries: Pairs, rng: random.Random) -> None:
    """Changes one thing in the entries."""
    if not entries:
        entries.append(("a", rng.choice([[], None, 1, [("dtype", "F32")]])))
        return
    place = rng.randrange(len(entries))
    name, entry = entries[place]
    kind = rng.randrange(8)
    if kind == 0:
        entries.append((name, entry))
    elif kind == 1:
        entries[place] = (rng.choice(["__metadata__", "", "t0", "\ud800", "\x00"]), entry)
    elif kind == 2:
        entries[place] = (name, rng.choice([None, 1, "x", [], [1], Raw("{}"), Raw("NaN"), [("format", 1)]]))
    elif isinstance(entry, list) and entry and isinstance(entry[0], tuple):
        changed = list(entry)
        at = rng.randrange(len(changed))
        field, value = changed[at]
        if kind == 3:
            changed.append((rng.choice(["more", field]), value))
        elif kind == 4:
            del changed[at]
        elif isinstance(value, list) and value:
            numbers = list(value)
            numbers[rng.randrange(len(numbers))] = rng.choice(SIZES)
            if kind == 5:
                numbers.append(rng.choice(SIZES))
            changed[at] = (field, numbers)
        else:
            changed[at] = (field, rng.choice([*SIZES, "F32", "f32", "F8_E4M3", "F4", [], [[1]]]))
        entries[place] = (name, changed)


def damage(data: bytearray, rng: random.Random) -> None:
    """Changes some bytes."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] = rng.choice(BYTES)
            case 2:
                data.insert(at, rng.choice(BYTES))
            case 3 if len(data) > 1:
                del data[at]
            case _:
                del data[at + 1 :]


def crafted(rng: random.Random) -> bytes:
    """A safetensors file, most often with a lie or damage in it."""
    entries, size = tensors(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        lie(entries, rng)
    header = (written(entries) if entries else "{}").encode("utf-8", "surrogatepass") + b" " * rng.choice([0, 0, 3, 8])
    size = max(0, size + rng.choice([0, 0, 0, 0, -1, 1, 8]))
    length = max(0, len(header) + rng.choice([0] * 12 + [-1, 1, 8, 2**31, 2**63 - 1, 2**64 - 1 - len(header)]))
    data = bytearray(struct.pack("<Q", length) + header + rng.randbytes(size))
    if rng.random() < 0.3:
        damage(data, rng)
    return bytes(data)


def ours(data: bytes) -> dict[str, Any] | str:
    try:
        read = read_header(io.BytesIO(data), len(data))
    except SafetensorsError as error:
        return str(error)
    return {t.name: (t.dtype, list(t.shape), data[t.begin : t.end]) for t in read}


def the_librarys(data: bytes) -> dict[str, Any] | None:
    try:
        read = deserialize(data)
    except SafetensorError:
        return None
    return {name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in read}


def main() -> None:
    count, seed = map(int, sys.argv[1:])
    rng = random.Random(seed)
    both = neither = 0
    stricter: Counter[str] = Counter()
    wrong: list[tuple[str, str]] = []
    for _ in range(count):
        data = crafted(rng)
        left, right = ours(data), the_librarys(data)
        if isinstance(left, str):
            neither += right is None
            if right is not None:
                stricter[re.sub(r"'[^']*'|\d+|\([^)]*\)", "…", left)] += 1
        elif left == right:
            both += 1
        elif len(wrong) < 10:
            wrong.append((f"read as {left}, by the library as {right}"[:400], data.hex()))
    json.dump({"both": both, "neither": neither, "stricter": stricter, "wrong": wrong}, sys.stdout)


if __name__ == "__main__":
    main()
