"""The search for NaN, Inf and overflow finds each in every type and place, and nothing else."""

import io
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.finite import LIMIT, SCANNABLE, Values, scan
from adapters.safetensors import Tensor
from tests.fakes.adapter_corpus import as_bytes

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def look(dtype: str, data: bytes, before: int = 3) -> Values:
    """Scans `data` as one tensor that begins at an odd place of its file."""
    file = io.BytesIO(b"\xff" * before + data + b"\xff" * 8)
    return scan(file, Tensor("t", dtype, (len(data) // SIZES[dtype],), before, before + len(data)))


def test_the_types_are_the_four_that_adapters_come_in() -> None:
    assert set(SIZES) == SCANNABLE


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_of_all_values_of_16_bits_exactly_the_unservable_are_found(dtype: str) -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    with np.errstate(invalid="ignore"):
        values = patterns.view("<f2").astype("f8") if dtype == "F16" else (patterns.astype("<u4") << 16).view("<f4")
    for pattern, value in zip(patterns.tolist(), values.tolist(), strict=True):
        found = look(dtype, struct.pack("<H", pattern))
        assert (found.index == 0) is not (abs(value) < LIMIT), value
        if found.index == 0:
            assert found.value == value or (math.isnan(found.value) and math.isnan(value))


@given(st.integers(0, 2**32 - 1))
def test_any_float32_is_found_exactly_when_it_is_unservable(bits: int) -> None:
    data = struct.pack("<I", bits)
    (value,) = struct.unpack("<f", data)
    assert (look("F32", data).index == 0) is not (abs(value) < LIMIT)


@given(st.integers(0, 2**64 - 1) | st.floats().map(lambda v: struct.unpack("<Q", struct.pack("<d", v))[0]))
def test_any_float64_is_found_exactly_when_it_is_unservable(bits: int) -> None:
    data = struct.pack("<Q", bits)
    (value,) = struct.unpack("<d", data)
    assert (look("F64", data).index == 0) is not (abs(value) < LIMIT)


@pytest.mark.parametrize("value", [32767.99, 32768.0, -32768.0, 65536.0, 1e300], ids=str)
def test_the_limit_is_the_same_in_float64(value: float) -> None:
    assert (look("F64", struct.pack("<d", value)).index == 0) is (abs(value) >= LIMIT)


@pytest.mark.parametrize("dtype", sorted(SIZES))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_it_is_found_wherever_it_stands(dtype: str, bad: float) -> None:
    """First, last, and on either side of where a chunk ends, in a tensor of some chunks."""
    count = 700_000 // SIZES[dtype]
    chunk = (1 << 18) // SIZES[dtype]
    clean = (np.random.default_rng(0).standard_normal(count) * 3).astype("<f4")
    for place in (0, 1, chunk - 1, chunk, 2 * chunk - 1, 2 * chunk, count - 1):
        values = clean.copy()
        values[place] = bad
        found = look(dtype, as_bytes(dtype, values))
        assert found.index == place
        assert str(found.value) == str(bad)
    assert look(dtype, as_bytes(dtype, clean)) == Values()


@pytest.mark.parametrize("dtype", sorted(SIZES))
def test_zeros_are_told_from_next_to_nothing(dtype: str) -> None:
    values = np.zeros(200_000, "<f4")
    assert look(dtype, as_bytes(dtype, values)).zero
    values[-1] = 1e-4
    assert not look(dtype, as_bytes(dtype, values)).zero


def test_a_file_that_has_become_shorter_is_an_error_not_a_pass() -> None:
    with pytest.raises(EOFError):
        scan(io.BytesIO(bytes(10)), Tensor("t", "F32", (10,), 0, 40))
