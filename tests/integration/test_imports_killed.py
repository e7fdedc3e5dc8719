"""An import may be killed at any moment, and opens nothing that could run: the process itself, run by hand."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters import AdapterStore, digest_of
from adapters.job import Job, as_line
from adapters.sources.pack import pack
from adapters.sources.source import ArchiveSource, FolderSource, HubSource, Source
from tests.fakes.adapter_corpus import TINY, Craft
from tests.fakes.archives import tar, zipped
from tests.fakes.fake_hub import fake_hub
from tests.patience import LATE
from tests.tiers import repeated

ROOT = Path(__file__).parents[2]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Runs the import, and writes down what it opens for reading, runs and unpickles.
WATCHED = """
import os, runpy, sys

log = os.open(sys.argv.pop(), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
telling = ("open", "exec", "compile", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "socket.connect")

def watch(event, arguments):
    if event in telling:
        what = arguments[0] if event != "exec" else getattr(arguments[0], "co_filename", "")
        os.write(log, f"{event} {what!r}\\n".encode())

sys.addaudithook(watch)
runpy.run_module("adapters.importing", run_name="__main__", alter_sys=True)
"""


def crafted(folder: Path, seed: int = 0) -> Path:
    craft = Craft(TINY)
    craft.config["lora_alpha"] = seed + 1
    craft.write(folder)
    return folder


@contextmanager
def importing(
    store: Path, source: Source, *command: str, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of an import; it has its job."""
    environment = {"PYTHONPATH": str(ROOT), **(environ or {})}
    start = [sys.executable, "-P", "-s", *(command or ("-m", "adapters.importing"))]
    with subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        process.stdin.write(as_line(Job(store, source)))
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def last_line(process: subprocess.Popen[bytes]) -> Mapping[str, object]:
    assert process.stdout is not None
    found: Mapping[str, object] = json.loads(process.stdout.read().splitlines()[-1])
    return found


def whole(root: Path) -> set[str]:
    """The versions in the store, each of them true to its digest; nothing is left in staging."""
    store = AdapterStore.open(root)
    assert os.listdir(root / "staging") == []
    assert {version.digest for version in store.versions()} == set(os.listdir(root / "sha256"))
    return {store.verify(version.digest).digest for version in store.versions()}


@repeated(20, 200)
def test_killed_at_random_moments_the_store_is_whole_and_the_next_import_succeeds(
    repetitions: int, tmp_path: Path
) -> None:
    """D-5. A folder, an upload and a repository, in turn; in between, versions are taken away."""
    rng = random.Random(0)
    root = tmp_path / "store"
    known: set[str] = set()
    killed, longest = 0, LATE  # seconds: the first is left to its end, and says how long they take here
    with fake_hub() as hub:
        for number in range(repetitions):
            folder = crafted(tmp_path / f"bot{number}", number)
            with (tmp_path / "upload").open("wb") as file:
                pack(folder, file)
            hub.repository("org/bot", {path.name: path.read_bytes() for path in folder.iterdir()})
            source = [FolderSource(folder), ArchiveSource(tmp_path / "upload"), HubSource("hf", "org/bot")][number % 3]
            began = time.monotonic()
            with importing(root, source, environ={"HF_ENDPOINT": hub.url}) as process:
                try:
                    process.wait(rng.uniform(0.0, longest) if number else longest)
                except subprocess.TimeoutExpired:
                    process.kill()
                    killed += 1
                else:
                    longest = longest if number else time.monotonic() - began
                    assert last_line(process)["digest"] == digest_of(folder)
            now = whole(root)
            assert known <= now <= {*known, digest_of(folder)}
            known = now
            if known and rng.random() < 0.3:
                AdapterStore.open(root).remove(known.pop())
        with importing(root, source, environ={"HF_ENDPOINT": hub.url}) as process:
            assert last_line(process)["digest"] == digest_of(folder)
    assert whole(root) == {*known, digest_of(folder)}
    assert killed > 0


def test_without_whoever_asked_for_it_an_import_ends(tmp_path: Path) -> None:
    """A gateway that is killed leaves no import behind: the end of its standard input is its end."""
    content = {path.name: path.read_bytes() for path in crafted(tmp_path / "bot").iterdir()}
    with fake_hub() as hub:
        hub.repository("org/bot", content)
        asked = hub.stop.__class__()

        def stall(_: object, answer: object) -> object:
            asked.set()
            hub.stop.wait()
            return answer

        hub.fault = stall  # type: ignore[assignment]
        with importing(tmp_path / "store", HubSource("hf", "org/bot"), environ={"HF_ENDPOINT": hub.url}) as process:
            assert asked.wait(3 * LATE)
            assert process.poll() is None
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(3 * LATE) == -signal.SIGKILL
    assert whole(tmp_path / "store") == set()


@pytest.mark.parametrize("job", [b"", b"\n", b"nonsense\n", b"[" * 3_000_000])
def test_what_is_no_job_fails_with_a_sentence(job: bytes) -> None:
    command = [sys.executable, "-P", "-s", "-m", "adapters.importing"]
    done = subprocess.run(command, input=job, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    line = json.loads(done.stdout)
    assert line["phase"] == "Failed"
    assert line["reason"]
    assert done.stderr == b""


class Harmful:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> object:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("kind", ["beside", "checkpoint", "only", "renamed", "torch", "in_tar", "in_zip", "named_py"])
def test_no_pickle_and_no_code_of_an_adapter_is_ever_opened(kind: str, tmp_path: Path) -> None:
    """B-24: what the interpreter itself reports, from its start to its end."""
    trace = tmp_path / "trace"
    harmful = pickle.dumps(Harmful(trace))
    folder = crafted(tmp_path / "bot")
    source: Source = FolderSource(folder)
    match kind:
        case "beside":
            for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pkl", "last.ckpt"):
                (folder / name).write_bytes(harmful)
        case "checkpoint":
            (tmp_path / "run").mkdir()
            folder.rename(tmp_path / "run" / "checkpoint-5")
            (tmp_path / "run" / "checkpoint-5" / "optimizer.pt").write_bytes(harmful)
            (tmp_path / "run" / "training_args.bin").write_bytes(harmful)
            source = FolderSource(tmp_path / "run")
        case "only":
            (folder / WEIGHTS).rename(folder / "adapter_model.bin")
            (folder / "adapter_model.bin").write_bytes(harmful)
        case "renamed":
            (folder / WEIGHTS).write_bytes(harmful)
        case "torch":
            (folder / WEIGHTS).write_bytes(zipped({"archive/data.pkl": harmful}))
        case "in_tar":
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            (tmp_path / "upload").write_bytes(tar({**files, "training_args.bin": harmful}))
            source = ArchiveSource(tmp_path / "upload")
        case "in_zip":
            (tmp_path / "upload").write_bytes(zipped({CONFIG: b"{}", "adapter_model.bin": harmful}))
            source = ArchiveSource(tmp_path / "upload")
        case "named_py":
            for name in ("adapters.py", "sitecustomize.py", "json.py", "conftest.py", "modeling_bot.py"):
                (folder / name).write_text(f"open({str(trace)!r}, 'w')")
            os.chdir(folder)  # what the import is started from
    try:
        with importing(tmp_path / "store", source, "-c", WATCHED, str(tmp_path / "log")) as process:
            phase = last_line(process)["phase"]
    finally:
        os.chdir(ROOT)
    assert phase == ("Refused" if kind in ("only", "renamed", "torch", "in_zip") else "Done")
    events = (tmp_path / "log").read_text().splitlines()
    assert any(event.startswith("open") and WEIGHTS in event for event in events) or kind in ("only", "in_zip")
    suspicious = (".bin", ".pt'", ".pth", ".pkl", ".ckpt", str(folder / "json.py"), "modeling_bot", "sitecustomize.py'")
    assert [event for event in events if any(word in event for word in suspicious)] == []
    verbs = {event.partition(" ")[0] for event in events}
    assert verbs <= {"open", "exec", "compile"}
    assert not [event for event in events if event.startswith("exec") and str(tmp_path) in event]
    assert not trace.exists()
