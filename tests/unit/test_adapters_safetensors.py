"""The header reader takes exactly what the format allows, and survives everything else."""

import io
import json
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.safetensors import DTYPE_BITS, MAX_HEADER_BYTES, SafetensorsError, Tensor, read_header
from tests.fakes.adapter_corpus import TINY, Craft, safetensors, with_header


def read(data: bytes) -> tuple[Tensor, ...]:
    return read_header(io.BytesIO(data), len(data))


def pairs_of(text: str) -> Any:
    """JSON with objects as lists of pairs, so that nothing is lost of names that stand twice."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    def whole(number: str) -> int:
        return refuse(number) if number == "-0" else int(number)

    return json.loads(text, object_pairs_hook=lambda p: ("object", p), parse_constant=refuse, parse_int=whole)


def oracle(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """Slow and simple: counts how often each byte of the data is claimed. None for what is no valid file."""
    if len(data) < 8:
        return None
    (length,) = struct.unpack("<Q", data[:8])
    if length > MAX_HEADER_BYTES or 8 + length > len(data):
        return None
    payload = data[8 + length :]
    try:
        text = data[8 : 8 + length].decode("utf-8")
        kind, entries = pairs_of(text)
        json.dumps(entries, ensure_ascii=False).encode()  # half a character of UTF-16 is none
    except (ValueError, TypeError, RecursionError):
        return None
    if not text.startswith("{") or kind != "object" or len(dict(entries)) != len(entries):
        return None
    claims = [0] * len(payload)
    tensors = {}
    for name, value in entries:
        if not isinstance(value, tuple) or len(dict(value[1])) != len(value[1]):
            return None
        described = dict(value[1])
        if name == "__metadata__":
            if not all(isinstance(text, str) for text in described.values()):
                return None
            continue
        if set(described) != {"dtype", "shape", "data_offsets"}:
            return None
        dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
            return None
        for sizes in (shape, offsets):
            if not isinstance(sizes, list) or any(type(size) is not int or not 0 <= size < 2**63 for size in sizes):
                return None
        if len(offsets) != 2 or len(shape) > 8 or offsets[1] > len(payload) or offsets[0] > offsets[1]:
            return None
        bits = DTYPE_BITS[dtype]
        room = bits
        for size in shape:
            bits *= size
            room *= max(size, 1)
        if room >= 2**63 or bits != 8 * (offsets[1] - offsets[0]):
            return None
        for position in range(*offsets):
            claims[position] += 1
        tensors[name] = (dtype, tuple(shape), payload[offsets[0] : offsets[1]])
    return tensors if all(claim == 1 for claim in claims) else None


def tensors_or_reason(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | str:
    try:
        return {tensor.name: (tensor.dtype, tensor.shape, data[tensor.begin : tensor.end]) for tensor in read(data)}
    except SafetensorsError as error:
        return str(error)


def agrees_with_the_oracle(data: bytes) -> None:
    expected, found = oracle(data), tensors_or_reason(data)
    if isinstance(found, str):
        assert expected is None, f"refused a valid file: {found}"
        assert found.isprintable()
    else:
        assert found == expected


def test_what_was_written_is_read() -> None:
    craft = Craft(TINY)
    data = safetensors(craft.tensors)
    tensors = read(data)
    assert {tensor.name for tensor in tensors} == craft.tensors.keys()
    assert all(craft.tensors[t.name][1].tobytes() == data[t.begin : t.end] for t in tensors)
    assert oracle(data) is not None


def described(shape: str = "[1]", offsets: str = "[0, 4]", more: str = "") -> str:
    return f'{{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}{more}}}'


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (f'{{"a": {described(offsets="[4, 8]")}}}', 8),
        (f'{{"a": {described()}, "b": {described(offsets="[8, 12]")}}}', 12),
        (f'{{"a": {described()}, "b": {described(offsets="[2, 6]")}}}', 6),
        (f'{{"a": {described()}, "b": {described()}}}', 4),
        (f'{{"a": {described()}}}', 5),
        (f'{{"a": {described()}}}', 3),
        ('{"a": ' + described(more=', "more": 1') + "}", 4),
        (f'{{"a": {described(shape="[-1, -1]")}}}', 4),
        (f'{{"a": {described(shape="[true]")}}}', 4),
        (f'{{"a": {described(shape="[1.0]")}}}', 4),
        (f'{{"a": {described(offsets="[0, 2, 4]")}}}', 4),
        (f'{{"a": {described(shape="[1, 1, 1, 1, 1, 1, 1, 1, 1]")}}}', 4),
        (f'{{"a": {described()}, "a": {described(offsets="[4, 8]")}}}', 8),
        (f'{{"a": {described()}, "__metadata__": {{"x": 1}}}}', 4),
        (f'{{"a": {described()}, "b": 1}}', 4),
        (f' {{"a": {described()}}}', 4),
        (f'{{"a": {described()}}} x', 4),
        (f'{{"a": {described(offsets="[-0, 4]")}}}', 4),
        (f'{{"\\ud800": {described()}}}', 4),
        (f'{{"a": {described(shape="[4611686018427387904, 4, 0]", offsets="[0, 0]")}}}', 0),
        ('{"a": NaN}', 0),
        ("[]", 0),
    ],
)
def test_what_the_format_does_not_allow_is_refused(header: str, payload: int) -> None:
    whole = with_header(header.encode(), bytes(payload))
    assert oracle(whole) is None
    with pytest.raises(SafetensorsError):
        read(whole)


@given(st.binary(max_size=300))
@example(b"")
@example(struct.pack("<Q", 2) + b"{}")
@example(struct.pack("<Q", 2**64 - 1) + b"{}")
def test_random_bytes_are_refused_or_valid(data: bytes) -> None:
    agrees_with_the_oracle(data)


@given(st.data())
def test_a_valid_file_with_some_bytes_changed_is_refused_or_valid(data: st.DataObject) -> None:
    whole = bytearray(with_header(b'{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}', b"\0" * 8))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["set", "insert", "delete"])):
            case "set":
                whole[position] = data.draw(st.integers(0, 255) | st.sampled_from(b'0129-.eE"{}[],: '))
            case "insert":
                whole.insert(position, data.draw(st.sampled_from(b'0129-.e"{}[],: \0')))
            case _ if len(whole) > 1:
                del whole[position]
    agrees_with_the_oracle(bytes(whole))


sizes = st.integers(0, 6) | st.sampled_from([-1, 2**31, 2**32, 2**62, 2**63, 2**64, 1.0, True, None, "4", [4]])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F6_E2M3", "F64", "bf16", "", 4]),
        "shape": st.lists(sizes, max_size=3) | sizes,
        "data_offsets": st.lists(sizes, min_size=1, max_size=3) | sizes,
    },
    optional={"more": st.just(1)},
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), entries | st.just({"k": "v"}), max_size=3),
    st.integers(0, 24),
)
def test_a_header_of_any_sizes_is_refused_or_valid(header: dict[str, object], payload: int) -> None:
    agrees_with_the_oracle(with_header(json.dumps(header).encode(), b"\0" * payload))


@given(st.lists(st.tuples(st.sampled_from(["U8", "F16", "F32"]), st.integers(0, 3)), max_size=5), st.data())
def test_tensors_in_any_order_of_the_header_are_read(layout: list[tuple[str, int]], data: st.DataObject) -> None:
    """Also tensors of no size, which share their place with the next."""
    entries, position = [], 0
    for index, (dtype, count) in enumerate(layout):
        end = position + count * DTYPE_BITS[dtype] // 8
        entries.append((f"t{index}", {"dtype": dtype, "shape": [count], "data_offsets": [position, end]}))
        position = end
    header = dict(data.draw(st.permutations(entries)))
    whole = with_header(json.dumps(header).encode(), bytes(position))
    assert len(read(whole)) == len(layout)
    agrees_with_the_oracle(whole)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 200_000,
        b'{"' + b"x" * 1_000_000 + b'":1}',
        b"{" + b",".join(b'"%d":{}' % i for i in range(300_000)) + b"}",
        b'{"a":[' + b"0," * 2_000_000 + b"0]}",
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=["deep", "long name", "many", "wide", "long number"],
)
def test_a_header_made_to_exhaust_the_reader_is_refused(header: bytes) -> None:
    with pytest.raises(SafetensorsError):
        read(with_header(header))


def test_a_header_is_not_read_beyond_its_limit() -> None:
    class Watched(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.largest = max(self.largest, size or 0)
            return super().read(size)

    file = Watched(struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(100))
    with pytest.raises(SafetensorsError, match=str(MAX_HEADER_BYTES)):
        read_header(file, 1 << 40)
    assert file.largest <= 8
