"""What a key costs: the same time whether it exists or not (S-5), and no more for being one of ten thousand."""

from __future__ import annotations

import gc
import math
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.api.auth import authorise
from gateway.api.routes import Access
from gateway.controlplane.audit import AuditLog
from gateway.controlplane.compiler import Compiler
from gateway.controlplane.keyrecords import KeyRecords, row_of
from gateway.controlplane.keyring import Keyring
from gateway.controlplane.keys import KeyRecord, configured
from gateway.controlplane.observed import Observed
from gateway.controlplane.storage import Storage
from gateway.controlplane.tables import KEYS
from gateway.domain import keys
from gateway.domain.audit import Act, Actor
from gateway.domain.errors import Unauthenticated
from gateway.domain.secret import Secret
from gateway.domain.snapshot import Snapshot
from tests.unit.scenes import config, vllm

MANY = 10_000
PEPPER = keys.Pepper(Secret("0a1b2c3d4e5f60718293a4b5c6d7e8f9"))
ACT = Act(Actor("admin", "::1"), "key.create", "x")
CONFIG = config([vllm("a")])


def made() -> bytes:
    return keys.make(secrets.token_bytes(keys.RANDOM_BYTES)).reveal().encode()


def record(key: bytes, number: int) -> KeyRecord:
    return KeyRecord(keys.parse(key), f"k{number}", PEPPER.digest(key), PEPPER.name, 1_700_000_000 + number)


@pytest.fixture(scope="module")
def valid() -> list[bytes]:
    return [made() for _ in range(MANY)]


@pytest.fixture(scope="module")
def snapshot(valid: list[bytes]) -> Snapshot:
    principals = {digest: who for number, key in enumerate(valid) for digest, who in record(key, number).principals()}
    return Snapshot(1, {}, {}, {}, principals, pepper=PEPPER, admin_key=PEPPER.digest(made()))


def looked_up(snapshot: Snapshot, key: bytes) -> bool:
    try:
        authorise(snapshot, Access.KEY, {b"authorization": b"Bearer " + key}, "203.0.113.1")
    except Unauthenticated:
        return False
    return True


@pytest.fixture
def quiet() -> Iterator[None]:
    """Without the garbage collector, which may come at any time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def interleaved(count: int, rng: Random, *actions: Callable[[int], object]) -> list[list[int]]:
    """Nanoseconds that each action took, `count` times each, in random order, so that what the machine does meanwhile
    falls on all of them alike."""
    took: list[list[int]] = [[] for _ in actions]
    order = [which for which in range(len(actions)) for _ in range(count)]
    rng.shuffle(order)
    clock = time.perf_counter_ns
    for number, which in enumerate(order):
        action = actions[which]
        began = clock()
        action(number)
        took[which].append(clock() - began)
    return took


def refusals(snapshot: Snapshot, valid: list[bytes], count: int, rng: Random) -> tuple[list[int], ...]:
    """How long it takes to refuse keys whose id nobody has, keys whose id somebody has, and keys that were revoked: all
    that whoever has no right key could learn from."""
    unknown = [made() for _ in range(MANY)]
    guessed = [keys.make(secrets.token_bytes(keys.RANDOM_BYTES), keys.parse(key)).reveal().encode() for key in valid]
    revoked = [made() for _ in range(MANY)]  # what is left of them in a snapshot

    def of(some: list[bytes]) -> Callable[[int], object]:
        return lambda number: looked_up(snapshot, some[number % MANY])

    interleaved(2000, rng, of(unknown), of(guessed), of(revoked))
    return tuple(interleaved(count, rng, of(unknown), of(guessed), of(revoked)))


def test_the_time_of_a_refusal_says_nothing_about_keys_that_exist(
    snapshot: Snapshot, valid: list[bytes], quiet: None
) -> None:
    rng = Random(5)
    for _ in range(5):  # a busy machine is no fault: a difference that is real is there each time
        unknown, *others = (statistics.median(took) for took in refusals(snapshot, valid, 3000, rng))
        if all(abs(other - unknown) < 0.25 * unknown for other in others):
            return
    pytest.fail(f"{unknown} ns for an id that nobody has, {others} ns for others")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nor_does_that_of_a_hundred_and_fifty_thousand(snapshot: Snapshot, valid: list[bytes], quiet: None) -> None:
    """As dudect does it: Welch's t over what is left when the slowest tenth, the machine's, is cropped."""
    rng = Random(6)
    for _ in range(5):
        unknown, *others = refusals(snapshot, valid, 50_000, rng)
        verdicts = [_apart(unknown, other) for other in others]
        if all(difference <= 0.02 and abs(t) < 4.5 for difference, t in verdicts):
            return
    pytest.fail(f"difference of medians, Welch's t: {verdicts}")


def _apart(one: list[int], other: list[int]) -> tuple[float, float]:
    bound = sorted(one + other)[int(0.9 * (len(one) + len(other)))]
    a, b = ([took for took in sample if took <= bound] for sample in (one, other))
    middle = statistics.median(a)
    error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    return abs(statistics.median(b) - middle) / middle, (statistics.fmean(a) - statistics.fmean(b)) / error


def test_a_key_that_is_let_in_costs_microseconds(snapshot: Snapshot, valid: list[bytes], quiet: None) -> None:
    (took,) = interleaved(20_000, Random(1), lambda number: looked_up(snapshot, valid[number % MANY]))
    assert looked_up(snapshot, valid[0])
    assert not looked_up(snapshot, made())
    assert statistics.median(took) < 50_000  # about 4,000 on a quiet machine; the bound is for any


async def opened(path: Path) -> tuple[Storage, Keyring]:
    storage, audit = await Storage.open(f"sqlite:///{path}"), AuditLog()
    audit.open(storage)
    keyring = Keyring(CONFIG.auth)
    await keyring.open(KeyRecords(storage, audit), PEPPER)
    return storage, keyring


def _fill(storage: Storage, rows: list[dict[str, Any]]) -> None:
    with storage.begin() as connection:
        connection.execute(KEYS.insert(), rows)


async def test_ten_thousand_keys_cost_the_start_and_a_change_next_to_nothing(
    tmp_path: Path, valid: list[bytes]
) -> None:
    storage, _ = await opened(tmp_path / "gateway.db")
    await storage.call(_fill, storage, [row_of(record(key, number)) for number, key in enumerate(valid)])
    await storage.close()
    began = time.monotonic()
    storage, keyring = await opened(tmp_path / "gateway.db")
    start = time.monotonic() - began
    compiler = Compiler(CONFIG)
    compiler.compile(Observed(keys=keyring.table))
    took = []
    try:
        for number in range(20):
            id = keys.parse(valid[number])

            def moved(before: KeyRecord | None, number: int = number) -> tuple[KeyRecord, Act]:
                assert before is not None
                return configured(before, owner=f"somebody {number}"), ACT

            def told(_: KeyRecord) -> None: ...

            hashed = keyring.table.principals
            await keyring.move(id, moved, told)
            assert sum(keyring.table.principals[digest] is not who for digest, who in hashed.items()) == 1
            began = time.perf_counter()
            keyring._take([(id, keyring.records[id])])
            snapshot = compiler.compile(Observed(keys=keyring.table))
            took.append(time.perf_counter() - began)
            assert len(snapshot.keys) == MANY
    finally:
        await storage.close()
    assert start < 3
    assert statistics.median(took) < 0.05  # half a millisecond on a quiet machine; the bound is for any
