"""S-17: whose wrong keys are counted together.  Nobody chooses that by a header, unless a trusted proxy says it."""

from __future__ import annotations

import logging

import pytest

from gateway.api.addresses import Addresses, neighbourhood
from gateway.api.failures import Failures
from gateway.domain.errors import Forbidden, Unauthenticated

TRUSTED = ("10.0.0.0/8", "192.0.2.1", "2001:db8:aaaa::/48")
STRANGER = "203.0.113.9"
WRONG = Unauthenticated("The API key is not valid.")

#: The peer, what the headers claim, and the address that counts.
SPOOFS = [
    # From whom is not trusted nothing is believed.
    (STRANGER, {"x-forwarded-for": "198.51.100.1"}, STRANGER),
    (STRANGER, {"x-forwarded-for": "10.0.0.1"}, STRANGER),
    (STRANGER, {"x-forwarded-for": "127.0.0.1"}, STRANGER),
    (STRANGER, {"x-forwarded-for": "198.51.100.1, 10.0.0.1"}, STRANGER),
    (STRANGER, {"x-real-ip": "198.51.100.1"}, STRANGER),
    (STRANGER, {"forwarded": "for=198.51.100.1"}, STRANGER),
    (STRANGER, {"x-client-ip": "198.51.100.1", "true-client-ip": "198.51.100.1"}, STRANGER),
    (STRANGER, {"cf-connecting-ip": "198.51.100.1", "x-forwarded-for": ""}, STRANGER),
    ("127.0.0.1", {"x-forwarded-for": "198.51.100.1"}, "127.0.0.1"),
    ("2001:db8:bbbb::1", {"x-forwarded-for": "198.51.100.1"}, "2001:db8:bbbb::1"),
    ("192.0.2.2", {"x-forwarded-for": "198.51.100.1"}, "192.0.2.2"),
    # A trusted proxy is believed, and only what it has appended itself.
    ("10.0.0.1", {"x-forwarded-for": "198.51.100.1"}, "198.51.100.1"),
    ("10.0.0.1", {"x-forwarded-for": "198.51.100.1, 203.0.113.9"}, STRANGER),
    ("10.0.0.1", {"x-forwarded-for": "10.9.9.9, 203.0.113.9"}, STRANGER),
    ("10.0.0.1", {"x-forwarded-for": "127.0.0.1, 203.0.113.9, 10.1.1.1, 192.0.2.1"}, STRANGER),
    ("10.0.0.1", {"x-forwarded-for": "1.1.1.1,2.2.2.2 ,\t203.0.113.9"}, STRANGER),
    ("10.0.0.1", {"x-forwarded-for": "198.51.100.1, nonsense, 10.1.1.1"}, "10.1.1.1"),
    ("10.0.0.1", {"x-forwarded-for": "nonsense"}, "10.0.0.1"),
    ("10.0.0.1", {"x-forwarded-for": ""}, "10.0.0.1"),
    ("10.0.0.1", {"x-forwarded-for": "198.51.100.1, "}, "10.0.0.1"),
    ("10.0.0.1", {"x-real-ip": "198.51.100.1", "forwarded": "for=198.51.100.1"}, "10.0.0.1"),
    ("10.0.0.1", {"x-forwarded-for": ", ".join(["1.1.1.1"] * 1000 + ["203.0.113.9"])}, STRANGER),
    ("10.0.0.1", {"x-forwarded-for": "10.0.0.9, 10.0.0.8"}, "10.0.0.9"),
    # Other ways to write the same.
    ("::ffff:10.0.0.1", {"x-forwarded-for": "::ffff:203.0.113.9"}, STRANGER),
    ("2001:db8:aaaa::1", {"x-forwarded-for": "[2001:db8::9]:4711"}, "2001:db8::9"),
    ("192.0.2.1", {"x-forwarded-for": "203.0.113.9:4711"}, STRANGER),
    ("fe80::1%eth0", {"x-forwarded-for": "198.51.100.1"}, "fe80::1"),
]


@pytest.mark.parametrize(("peer", "headers", "counts"), SPOOFS)
def test_no_header_makes_a_client_another_one(peer: str, headers: dict[str, str], counts: str) -> None:
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    assert Addresses(TRUSTED).client(peer, raw) == counts


def test_without_trusted_proxies_only_the_connection_counts() -> None:
    for peer, headers, _ in SPOOFS:
        raw = {name.encode(): value.encode() for name, value in headers.items()}
        assert Addresses(()).client(peer, raw) == Addresses(()).client(peer, {})


def test_one_persons_addresses_are_counted_together() -> None:
    assert neighbourhood("2001:db8:1:2:3:4:5:6") == neighbourhood("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert neighbourhood("2001:db8:1:3::9") != neighbourhood("2001:db8:1:2::9")
    assert neighbourhood("::ffff:203.0.113.9") == neighbourhood(STRANGER) == STRANGER


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def statuses(failures: Failures, client: str, times: int) -> list[int]:
    return [failures.judged(WRONG, client).status for _ in range(times)]


def test_after_twenty_wrong_keys_in_a_minute_further_ones_are_told_when_to_try_again() -> None:
    clock = Clock()
    failures = Failures(clock)
    for clock.now in range(20):
        assert failures.judged(WRONG, STRANGER) is WRONG
    clock.now = 30.0
    told = failures.judged(WRONG, STRANGER)
    assert (told.status, told.code, told.retry_after) == (429, "too_many_wrong_keys", 30.0)
    assert statuses(failures, "203.0.113.10", 20) == [401] * 20, "another address is not to blame"
    clock.now = 60.0
    assert statuses(failures, STRANGER, 2) == [401, 429], "one of the twenty is a minute old"
    clock.now = 1000.0
    assert statuses(failures, STRANGER, 21) == [401] * 20 + [429]


def test_what_is_no_guess_is_not_counted() -> None:
    failures = Failures(Clock())
    for error in (
        Unauthenticated("No API key", code="missing_api_key"), Unauthenticated("expired", code="api_key_expired"),
        Forbidden("no right"),
    ):  # fmt: skip
        assert {failures.judged(error, STRANGER).status for _ in range(50)} == {error.status}
    assert len(failures) == 0


def test_however_many_addresses_guess_the_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(Clock())
    for number in range(20_000):
        failures.judged(WRONG, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(failures) == 4096
    assert statuses(failures, STRANGER, 21)[-1] == 429


def test_the_log_says_once_who_guesses(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures(Clock())
    with caplog.at_level(logging.WARNING, "gateway.auth"):
        statuses(failures, STRANGER, 500)
    (line,) = caplog.records
    assert line.__dict__["client"] == STRANGER
