"""How the gateway's own keys are written."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import keys
from gateway.domain.secret import Secret

FORM = re.compile(r"sk-lgw-[0-9A-Za-z]{8}[0-9A-Za-z]{33}[0-9A-Za-z]{6}")
RANDOM = st.binary(min_size=keys.RANDOM_BYTES, max_size=keys.RANDOM_BYTES)


def made(random: bytes = b"", id: str = "") -> bytes:
    return keys.make(random or secrets.token_bytes(keys.RANDOM_BYTES), id).reveal().encode()


@given(RANDOM)
def test_a_key_has_the_form_that_scanners_look_for_and_its_id_can_be_read(random: bytes) -> None:
    key = made(random)
    assert FORM.fullmatch(key.decode())
    assert keys.is_ours(key)
    assert not keys.is_malformed(key)
    assert keys.parse(key) == key[7:15].decode()


def test_a_key_has_at_least_192_random_bits_and_no_two_are_alike() -> None:
    assert 62**33 > 2**192
    many = {made() for _ in range(2000)}
    assert len(many) == 2000
    assert len({keys.parse(key) for key in many}) == 2000
    again = made(id="abcdEF12")
    assert keys.parse(again) == "abcdEF12"
    assert made(id="abcdEF12") != again


def test_each_character_is_as_likely_as_any_other() -> None:
    drawn = b"".join(made()[15:48] for _ in range(4000))
    counts = [drawn.count(char.encode()) for char in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"]
    expected = len(drawn) / 62
    assert sum((count - expected) ** 2 / expected for count in counts) < 140  # chi-square, 61 degrees: p < 1e-7


def test_too_little_randomness_makes_no_key() -> None:
    with pytest.raises(ValueError, match="random bytes"):
        keys.make(b"x" * (keys.RANDOM_BYTES - 1))


@given(RANDOM, st.integers(0, 53), st.integers(0, 61))
def test_no_single_typo_goes_unnoticed(random: bytes, place: int, letter: int) -> None:
    key = made(random)
    other = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[letter].encode()
    typo = key[:place] + other + key[place + 1 :]
    if typo != key:
        with pytest.raises(ValueError):
            keys.parse(typo)


@given(RANDOM, st.integers(0, 53))
def test_a_key_that_was_cut_off_or_swapped_is_no_key(random: bytes, place: int) -> None:
    key = made(random)
    swapped = key[:place] + key[place : place + 2][::-1] + key[place + 2 :]
    for wrong in (key[:place], key + b"x", key[:7] + key, swapped):
        if wrong != key:
            with pytest.raises(ValueError):
                keys.parse(wrong)


@given(st.binary(max_size=80))
def test_nothing_else_is_taken_for_a_key_of_ours(anything: bytes) -> None:
    with pytest.raises(ValueError):
        keys.parse(anything)


def test_the_checksum_is_the_crc_of_what_stands_before_it() -> None:
    key = made()
    number = 0
    for char in key[-6:].decode():
        number = number * 62 + "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".index(char)
    assert number == zlib.crc32(key[:-6])


@given(st.text(min_size=0, max_size=200, alphabet=st.characters(codec="utf-8")), st.binary(max_size=200))
def test_what_is_kept_of_a_key_is_its_hmac(pepper: str, key: bytes) -> None:
    assert keys.Pepper(Secret(pepper)).digest(key) == hmac.digest(pepper.encode(), key, hashlib.sha256)


def test_a_pepper_is_not_shown_and_known_by_its_name_alone() -> None:
    one, same, other = (keys.Pepper(Secret(text)) for text in ("salt and pepper", "salt and pepper", "chili"))
    assert one.name == same.name != other.name
    assert "salt" not in repr(one)
    assert repr(keys.KeyTable(one)).count("Pepper(***)") == 1
