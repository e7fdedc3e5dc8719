"""Versions that nobody wants any more go, and no others: whoever is killed, and whoever adds them again meanwhile."""

import fcntl
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from adapters import AdapterStore, StoredAdapter, StoreError
from tests.fakes.adapter_corpus import TINY, Craft
from tests.tiers import repeated

ROOT = Path(__file__).parents[2]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DAY = 86_400.0

# Takes DIGESTS away from STORE, one after the other; kills itself at the Nth thing it asks of the system on their
# behalf. Then, with a source, it adds that and takes it away, for ever.
REMOVER = """
import os, signal, sys
from pathlib import Path
from adapters import AdapterStore

root, count, source, *digests = sys.argv[1:]
left = int(count)

def die_in_time(event, arguments):
    global left
    if event == "open" or event.startswith(("os.", "shutil.", "tempfile.", "fcntl.")):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

store = AdapterStore.open(Path(root))
print("ready", flush=True)
if left:
    sys.addaudithook(die_in_time)
for digest in digests:
    assert store.remove(digest)
while source:
    store.remove(store.add(Path(source)).digest)
"""


def crafted(folder: Path, seed: int = 0) -> Path:
    craft = Craft(TINY)
    craft.config["lora_alpha"] = seed + 1
    craft.write(folder)
    return folder


def remover(root: Path, count: int, *digests: str, source: Path | str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", REMOVER, str(root), str(count), str(source), *digests]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def aged(version: StoredAdapter, seconds: float) -> StoredAdapter:
    then = time.time() - seconds
    os.utime(version.path, (then, then))
    return version


def whole(root: Path) -> set[str]:
    """The versions in the store, each of which is true to its digest; nothing else is left there."""
    store = AdapterStore.open(root)
    assert os.listdir(root / "staging") == []
    assert {version.digest for version in store.versions()} == set(os.listdir(root / "sha256"))
    return {store.verify(version.digest).digest for version in store.versions()}


def test_a_version_that_is_taken_away_is_gone_and_can_be_added_again(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    gone, stays = store.add(crafted(tmp_path / "a")), store.add(crafted(tmp_path / "b", 1))
    assert store.remove(gone.digest)
    assert store.get(gone.digest) is None
    assert not gone.path.exists()
    assert not store.remove(gone.digest)
    assert whole(tmp_path / "store") == {stays.digest}
    assert store.add(tmp_path / "a") == gone
    assert whole(tmp_path / "store") == {gone.digest, stays.digest}


def test_whoever_reads_a_version_reads_on_when_it_is_taken_away(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    version = store.add(crafted(tmp_path / "a"))
    with (version.path / WEIGHTS).open("rb") as file:
        begin = file.read(100)
        store.remove(version.digest)
        assert begin + file.read() == (tmp_path / "a" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("digest", ["", ".", "..", "../staging", "0" * 64, "g" * 64, "/etc", "0" * 63 + "\0"])
def test_what_is_no_version_is_not_taken_away(digest: str, tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    version = store.add(crafted(tmp_path / "a"))
    assert not store.remove(digest)
    assert whole(tmp_path / "store") == {version.digest}


def test_a_damaged_version_can_be_taken_away_and_added_again(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    version = store.add(crafted(tmp_path / "a"))
    (version.path / WEIGHTS).unlink()
    (version.path / "stranger").mkdir()
    assert store.remove(version.digest)
    assert store.add(tmp_path / "a") == version
    assert whole(tmp_path / "store") == {version.digest}


def test_what_nobody_keeps_and_is_old_is_collected(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    kept, old, young = (store.add(crafted(tmp_path / str(seed), seed)) for seed in range(3))
    aged(kept, 2 * DAY)
    aged(old, 2 * DAY)
    assert store.collect({kept.digest}, DAY) == (old.digest,)
    assert store.collect({kept.digest}, DAY) == ()
    assert whole(tmp_path / "store") == {kept.digest, young.digest}
    assert store.collect((), -math.inf) == tuple(sorted((kept.digest, young.digest)))


def test_adding_a_version_again_makes_it_young(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    aged(store.add(crafted(tmp_path / "a")), 2 * DAY)
    store.add(tmp_path / "a")
    assert store.collect((), DAY) == ()


def test_a_clock_that_went_back_takes_nothing_away_but_what_is_asked_for(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    version = aged(store.add(crafted(tmp_path / "a")), -2 * DAY)
    assert store.collect((), 0.0) == ()
    assert store.remove(version.digest)


@repeated(60, 2000)
def test_what_was_just_added_is_not_collected_however_old_it_was(repetitions: int, tmp_path: Path) -> None:
    """An old version is added again and collected at the same moment: whoever added it has it."""
    source = crafted(tmp_path / "a")
    store = AdapterStore.open(tmp_path / "store")
    collected = 0
    with ThreadPoolExecutor(3) as pool:
        for _ in range(repetitions):
            aged(store.add(source), 2 * DAY)
            together = threading.Barrier(3)

            def at_once(work: str, together: threading.Barrier = together) -> int:
                together.wait()
                if work == "add":
                    assert store.add(source).path.is_dir()
                    return 0
                return len(store.collect((), DAY))

            collected += sum(pool.map(at_once, ["add", "collect", "collect"]))
            assert len(store.versions()) == 1
    assert len(whole(tmp_path / "store")) == 1
    assert 0 <= collected <= repetitions


def test_nothing_is_collected_at_the_moment_in_which_somebody_confirms_a_version(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    version = aged(store.add(crafted(tmp_path / "a")), 2 * DAY)
    with ThreadPoolExecutor(1) as pool, (tmp_path / "store" / "versions.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as who adds it again
        collecting = pool.submit(store.collect, (), DAY)
        with suppress(TimeoutError):
            collecting.result(0.3)  # time enough to do it wrong
        os.utime(version.path)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert collecting.result() == ()


def test_killed_at_any_step_a_version_is_whole_or_gone(tmp_path: Path) -> None:
    """The child dies at its first, second, … call to the system, until it gets through."""
    source = crafted(tmp_path / "source")
    deaths, outcomes = 0, set()
    for step in range(1, 200):
        root = tmp_path / f"store{step}"
        version = AdapterStore.open(root).add(source)
        with remover(root, step, version.digest) as child:
            child.communicate()
        left = whole(root)
        outcomes.add(bool(left))
        assert AdapterStore.open(root).add(source) == version
        if child.returncode == 0:
            assert not left
            break
        assert child.returncode == -signal.SIGKILL
        deaths += 1
    assert 5 < deaths < 199, "the child was to be killed at each of its steps, and then to get through"
    assert outcomes == {True, False}


@repeated(12, 200)
def test_killed_at_random_moments_while_others_add_the_store_is_whole(repetitions: int, tmp_path: Path) -> None:
    rng = random.Random(0)
    root = tmp_path / "store"
    sources = [crafted(tmp_path / str(seed), seed) for seed in range(2)]
    stays = AdapterStore.open(root).add(crafted(tmp_path / "stays", 9))
    for _ in range(repetitions):
        children = [remover(root, 0, source=source) for source in sources]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            children[0].wait(rng.uniform(0.0, 0.05))
        for child in children:
            child.kill()
            child.communicate()
        assert stays.digest in whole(root)


@repeated(100, 1000)
def test_whatever_happened_to_the_files_of_a_version_is_found(repetitions: int, tmp_path: Path) -> None:
    """D-9: bytes are flipped, cut off, added and exchanged."""
    rng = random.Random(0)
    store = AdapterStore.open(tmp_path / "store")
    version = store.add(crafted(tmp_path / "a"))
    originals = {name: (version.path / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    for _ in range(repetitions):
        name = rng.choice((CONFIG, WEIGHTS))
        data = bytearray(originals[name])
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data += rng.randbytes(rng.randint(1, 600))
            case 3:
                data[at] = (data[at] + rng.randint(1, 255)) % 256
            case _:
                data = bytearray(len(data))
        (version.path / name).chmod(0o644)
        (version.path / name).write_bytes(data)
        with pytest.raises(StoreError, match="damaged") as error:
            store.verify(version.digest)
        assert str(version.path) in str(error.value)
        (version.path / name).write_bytes(originals[name])
    assert store.verify(version.digest) == version
