"""D-5, F-29, F-30: kill -9 of the engine, of the gateway, of both, while adapters are added, moved and removed.

Afterwards, without anybody's help, what was acknowledged is so, the engine holds what it is to hold, a request is
answered by the version that its name points to, and every version in the store is whole.
"""

from __future__ import annotations

import contextlib
import io
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from adapters import AdapterStore
from adapters.sources.pack import pack
from tests import http
from tests.desk import BOOT, Desk, Wanted, page, until
from tests.fakes.adapter_corpus import TINY, Craft, factor, write_base
from tests.gateway import CLIENT_KEY, GatewayProcess, gateway_process
from tests.tiers import repeated

FAKE_VLLM = (sys.executable, str(Path(__file__).parents[1] / "fakes" / "fake_vllm.py"))
FIRST = factor("model.layers.0.self_attn.q_proj", "A")
NAMES = ("pirate", "poet")
CONTENTS = 4
CLIENT = {"authorization": f"Bearer {CLIENT_KEY}"}


class Place:
    """A gateway with an engine of its own, started as often as it dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        base = write_base(folder / "base")
        engine = {"model": str(base), "served_name": "base", "command": list(FAKE_VLLM)}
        self.config = {"upstreams": [{"name": "local", "kind": "vllm", "poll_interval": 1, "engine": engine}]}
        self.archives = [self._archive(number) for number in range(CONTENTS)]

    def _archive(self, number: int) -> bytes:
        craft = Craft(TINY)
        craft.poke(FIRST, (number + 1) / 100, index=0)
        craft.write(self.folder / "drafts" / str(number))
        file = io.BytesIO()
        pack(self.folder / "drafts" / str(number), file)
        return file.getvalue()

    @contextlib.contextmanager
    def running(self) -> Iterator[GatewayProcess]:
        with gateway_process(self.config, self.folder) as gateway:
            until(lambda: answers(gateway, "base") is not None, "the gateway serves its base model")
            yield gateway


def answers(gateway: GatewayProcess, model: str) -> str | None:
    """Which adapter answered ("" for none); None when nobody did."""
    body = {"model": model, "messages": [{"role": "user", "content": "Who are you?"}], "user": "somebody"}
    reply = http.post(f"{gateway.v1}/chat/completions", json=body, headers=CLIENT, timeout=BOOT, trust_env=False)
    if reply.status_code != 200:
        return None
    adapter = reply.headers.get("x-gateway-adapter", "")
    assert reply.json()["choices"][0]["message"]["content"] == f"I am {adapter or model}."
    return adapter


def kill_engine(gateway: GatewayProcess) -> None:
    process = psutil.Process(gateway.process.pid) if gateway.process else None
    fakes = [p for p in (process.children(recursive=True) if process else []) if FAKE_VLLM[1] in p.cmdline()[:2]]
    for fake in fakes:
        with contextlib.suppress(psutil.NoSuchProcess):
            fake.send_signal(signal.SIGKILL)


def check(place: Place, desk: Desk, gateway: GatewayProcess) -> None:
    """What was acknowledged is so, and served."""
    for name in NAMES:
        found, wanted = page(gateway, name), desk.known.get(name)
        if name != desk.asked:  # else the last request may have been carried out or not
            assert (Wanted.of(found) if found else None) == wanted
        if found is None:
            continue
        target = f"{name}@{Wanted.of(found).target}"
        until(lambda name=name, target=target: f"{name}@{page(gateway, name)['current']}" == target, f"{name} moved")
        for version in (f"{name}@{row['version']}" for row in found["versions"] if row["digest"]):
            assert answers(gateway, version) == version
        served = {target, *(f"{name}@{canary['version']}" for canary in found["canaries"])}
        assert answers(gateway, name) in served
        desk.known[name] = Wanted.of(page(gateway, name) or {})
    desk.known = {name: known for name, known in desk.known.items() if page(gateway, name) is not None}
    store = AdapterStore(place.folder / "store")
    stored = {store.verify(version.digest).version for version in store.versions()}
    assert stored >= {version for known in desk.known.values() for version in known.versions}


@repeated(2, 200)
def test_after_a_kill_what_was_acknowledged_is_so_without_anybodys_help(tmp_path: Path, repetitions: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    place = Place(tmp_path)
    desk = Desk(NAMES, place.archives, rng)
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(place.running())
        for _ in range(repetitions):
            desk.enough.clear()
            mover = threading.Thread(target=desk.work, args=(gateway, desk.moves + rng.randrange(1, 8)))
            mover.start()
            assert desk.enough.wait(BOOT), "the administrator is stuck"
            whom = rng.choice(("engine", "gateway", "both"))
            if whom != "gateway":
                kill_engine(gateway)
            if whom == "engine":
                more = desk.moves + 2
                until(lambda more=more: desk.moves >= more, "moves go on while the engine comes back")
            gateway.process.kill()  # the administrator's connection ends with it, and so does his work
            gateway.process.wait()
            mover.join(BOOT)
            assert not mover.is_alive()
            gateway = stack.enter_context(place.running())
            check(place, desk, gateway)
            assert not list((tmp_path / "store" / "uploads").iterdir())
            assert not list((tmp_path / "store" / "staging").iterdir())
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(commandline(p))], "left behind"


def commandline(process: psutil.Process) -> list[str]:
    """Empty for one that has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
