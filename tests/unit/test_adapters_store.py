"""The store: a listed version is whole and true to its digest, whoever is killed, and whenever."""

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import AdapterStore, Code, RefusedError, StoreError
from tests.fakes.adapter_corpus import CASES, TINY, Craft

ROOT = Path(__file__).parents[2]

# Adds SOURCES, one after the other, to STORE; kills itself at the Nth thing it asks of the system on their behalf.
ADDER = """
import os, signal, sys
from pathlib import Path
from adapters import AdapterStore
from adapters.store import StoredAdapter

root, count, *sources = sys.argv[1:]
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
for source in sources:
    store.add(Path(source))
"""


def crafted(folder: Path, seed: int = 0, size: int = 0) -> Path:
    """An adapter of its own content for each seed; `size` bytes of weights or what a plain one has."""
    craft = Craft(TINY)
    craft.config["lora_alpha"] = seed + 1
    if size:
        craft.files["adapter_model.safetensors"] = random.Random(seed).randbytes(size)
    craft.write(folder)
    return folder


def adder(store: Path, count: int, *sources: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", ADDER, str(store), str(count), *map(str, sources)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def whole(root: Path) -> int:
    """The number of versions in the store, each of which is true to its digest; nothing else is left there."""
    store = AdapterStore.open(root)
    assert os.listdir(root / "staging") == []
    assert {"sha256", "staging"} <= set(os.listdir(root)) <= {"lock", "versions.lock", "sha256", "staging"}
    versions = store.versions()
    assert sorted(os.listdir(root / "sha256")) == [version.digest for version in versions]
    for version in versions:
        assert store.verify(version.digest) == version
    return len(versions)


def test_a_version_is_its_content_under_a_digest_anybody_can_compute(tmp_path: Path) -> None:
    source = crafted(tmp_path / "source")
    source.chmod(0o700)
    (source / "adapter_model.safetensors").chmod(0o600)  # as torch and peft leave it
    (source / "README.md").write_text("not part of it")

    stored = AdapterStore.open(tmp_path / "store").add(source)

    files = "adapter_config.json adapter_model.safetensors"
    recipe = f"cd {stored.path} && sha256sum {files} | sha256sum"
    assert subprocess.check_output(["sh", "-c", recipe], text=True).split()[0] == stored.digest
    assert stored.version == stored.digest[:12]
    assert stored.path.is_absolute()
    assert sorted(os.listdir(stored.path)) == files.split()
    for name in files.split():
        assert (stored.path / name).read_bytes() == (source / name).read_bytes()
        assert (stored.path / name).stat().st_mode & 0o777 == 0o444
    assert stored.path.stat().st_mode & 0o777 == 0o755
    assert whole(tmp_path / "store") == 1


def test_the_same_content_is_the_same_version_and_other_content_another(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    first = store.add(crafted(tmp_path / "a"))
    inode = (first.path / "adapter_config.json").stat().st_ino
    assert store.add(crafted(tmp_path / "b")) == first
    assert (first.path / "adapter_config.json").stat().st_ino == inode, "a version is never written again"
    second = store.add(crafted(tmp_path / "c", seed=1))
    assert second != first
    assert set(AdapterStore.open(tmp_path / "store").versions()) == {first, second}
    assert whole(tmp_path / "store") == 2


def test_what_is_judged_is_what_is_kept(tmp_path: Path) -> None:
    """The source is replaced while the copy is judged: the version is what was judged."""
    source = crafted(tmp_path / "source")
    judged = []

    def accept(copy: Path) -> None:
        assert tmp_path / "store" in copy.parents
        judged.append((copy / "adapter_config.json").read_bytes())
        (source / "adapter_config.json").write_bytes(b"{}")

    stored = AdapterStore.open(tmp_path / "store").add(source, accept)
    assert [(stored.path / "adapter_config.json").read_bytes()] == judged
    assert whole(tmp_path / "store") == 1


def test_what_is_refused_is_not_kept(tmp_path: Path) -> None:
    class NotWantedError(Exception):
        pass

    def refuse(copy: Path) -> None:
        raise NotWantedError

    store = AdapterStore.open(tmp_path / "store")
    with pytest.raises(NotWantedError):
        store.add(crafted(tmp_path / "source"), refuse)
    assert os.listdir(tmp_path / "store" / "staging") == []
    assert whole(tmp_path / "store") == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nothing_in_it", Code.CONFIG_MISSING),
        ("pickled_weights", Code.PICKLE),
        ("weights_a_link", Code.LINK),
        ("weights_a_pipe", Code.FILE),
        ("weights_a_folder", Code.FILE),
        ("config_huge", Code.TOO_LARGE),
    ],
)
def test_what_is_no_adapter_is_refused_and_leaves_nothing(name: str, code: Code, tmp_path: Path) -> None:
    source = next(case for case in CASES if case.name == name).write(tmp_path / "source")
    with pytest.raises(RefusedError) as refused:
        AdapterStore.open(tmp_path / "store").add(source)
    assert refused.value.findings[0].code is code
    assert os.listdir(tmp_path / "store" / "staging") == []
    assert whole(tmp_path / "store") == 0


def test_a_damaged_version_is_found_and_not_given_out_again(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    stored = store.add(crafted(tmp_path / "source"))
    weights = stored.path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        store.verify(stored.digest)
    with pytest.raises(StoreError, match="damaged"):
        store.add(tmp_path / "source")
    weights.unlink()
    with pytest.raises(StoreError, match="damaged"):
        store.verify(stored.digest)


@pytest.mark.parametrize("digest", ["", ".", "..", "../staging", "0" * 64, "g" * 64, "/etc"])
def test_what_is_not_in_the_store_is_not_found_whatever_it_is_called(digest: str, tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")
    assert store.get(digest) is None
    with pytest.raises(StoreError):
        store.verify(digest)


def test_adders_of_the_same_content_at_once_get_the_same_version(tmp_path: Path) -> None:
    sources = [crafted(tmp_path / f"source{i}", seed=i % 2) for i in range(8)]
    store = AdapterStore.open(tmp_path / "store")
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(store.add, sources))
    assert len(set(stored)) == 2
    assert whole(tmp_path / "store") == 2


def test_processes_that_add_the_same_content_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    sources = [crafted(tmp_path / f"source{i}", seed=i, size=300_000) for i in range(6)]
    children = [adder(tmp_path / "store", 0, *sources) for _ in range(3)]
    for child in children:
        child.communicate()
        assert child.returncode == 0
    assert whole(tmp_path / "store") == 6


def test_opening_the_store_leaves_alone_what_is_being_added(tmp_path: Path) -> None:
    store = AdapterStore.open(tmp_path / "store")

    def open_it_meanwhile(copy: Path) -> None:
        AdapterStore.open(tmp_path / "store")
        assert copy.is_dir()

    store.add(crafted(tmp_path / "source"), open_it_meanwhile)
    assert whole(tmp_path / "store") == 1


def test_killed_at_any_step_the_store_is_whole_and_the_next_add_succeeds(tmp_path: Path) -> None:
    """The child dies at its first, second, … call to the system, until it gets through."""
    source = crafted(tmp_path / "source")
    deaths = 0
    for step in range(1, 200):
        root = tmp_path / f"store{step}"
        with adder(root, step, source) as child:
            child.communicate()
        before = whole(root)
        assert before in (0, 1)
        AdapterStore.open(root).add(source)
        assert whole(root) == 1
        if child.returncode == 0:
            assert before == 1
            break
        assert child.returncode == -signal.SIGKILL
        deaths += 1
    assert 10 < deaths < 199, "the child was to be killed at each of its steps, and then to get through"


def test_killed_at_random_moments_the_store_is_whole(tmp_path: Path) -> None:
    """Large adapters, so that most of the time is spent within a copy. The last round runs to its end."""
    sources = [crafted(tmp_path / f"source{i}", seed=i, size=8_000_000) for i in range(6)]
    rng = random.Random(0)
    root = tmp_path / "store"
    for _ in range(12):
        with adder(root, 0, *sources) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            try:
                child.wait(rng.uniform(0.001, 0.1))
            except subprocess.TimeoutExpired:
                child.kill()
        assert whole(root) <= len(sources)
    with adder(root, 0, *sources) as child:
        child.communicate()
    assert child.returncode == 0
    assert whole(root) == len(sources)
