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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from adapters import AdapterStore
from adapters.sources.pack import pack
from tests.fakes.adapter_corpus import TINY, Craft, factor, write_base
from tests.gateway import ADMIN_KEY, CLIENT_KEY, GatewayProcess, gateway_process
from tests.patience import LATE
from tests.tiers import repeated

FAKE_VLLM = (sys.executable, str(Path(__file__).parents[1] / "fakes" / "fake_vllm.py"))
FIRST = factor("model.layers.0.self_attn.q_proj", "A")
NAMES = ("pirate", "poet")
CONTENTS = 4
BOOT = 6 * LATE  # seconds: the gateway's, the engine's, and what is loaded into it
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
CLIENT = {"authorization": f"Bearer {CLIENT_KEY}"}


@dataclass(frozen=True)
class Wanted:
    """What an administrator asked for.  `target`: where the name points to, or will as soon as that is Ready."""

    target: str
    versions: frozenset[str]
    canaries: tuple[tuple[str, float], ...] = ()
    pinned: bool = False
    load: str | None = None

    @classmethod
    def of(cls, page: dict[str, Any]) -> Wanted:
        return cls(
            page["next"] or page["current"],
            frozenset(row["version"] for row in page["versions"] if row["digest"]),
            tuple((canary["version"], canary["weight"]) for canary in page["canaries"]),
            page["pinned"],
            page["load"],
        )


@dataclass
class Desk:
    """One administrator, who moves adapters until the gateway dies.  `known`: what the gateway acknowledged; `asked`:
    the name that a request was on its way for when it died."""

    archives: list[bytes]
    rng: random.Random
    known: dict[str, Wanted] = field(default_factory=dict)
    asked: str | None = None
    moves: int = 0
    enough: threading.Event = field(default_factory=threading.Event)

    def work(self, url: str, until: int) -> None:
        """Moves things until somebody kills the gateway; `enough` is set after so many moves."""
        with httpx2.Client(base_url=url, headers=ADMIN, timeout=BOOT, trust_env=False) as admin:
            with contextlib.suppress(httpx2.HTTPError):
                while True:
                    self.move(admin)
                    self.moves += 1
                    if self.moves >= until:
                        self.enough.set()

    def move(self, admin: httpx2.Client) -> None:
        name = self.rng.choice(NAMES)
        self.asked = name
        now, act = (
            self.known.get(name),
            self.rng.choice(("add", "add", "promote", "canary", "set", "rollback", "remove")),
        )
        adapter = f"/admin/v1/adapters/{name}"
        if act == "add" or now is None:
            begun = admin.put(f"{adapter}/archive", content=self.rng.choice(self.archives)).raise_for_status().json()
            while begun["phase"] not in ("Ready", "Failed"):
                begun = admin.get(f"/admin/v1/imports/{begun['id']}").raise_for_status().json()
            reply = admin.get(adapter)
        elif act == "remove":
            version = self.rng.choice(sorted(now.versions))
            reply = admin.delete(f"{adapter}/versions/{version}")
            if reply.status_code == 200 and "versions" not in reply.json():
                self.known.pop(name)
                return
        elif act == "set":
            reply = admin.patch(
                adapter, json={"pinned": self.rng.random() < 0.5, "load": self.rng.choice(("lazy", None))}
            )
        elif act == "rollback":
            reply = admin.post(f"{adapter}/rollback")
        else:
            version = self.rng.choice(sorted(now.versions))
            more = {"weight": self.rng.choice((0, 10, 50))} if act == "canary" else {}
            reply = admin.post(f"{adapter}/{act}", json={"version": version, **more})
        if reply.status_code in (200, 202):
            self.known[name] = Wanted.of(reply.json())
        else:
            assert reply.status_code in (404, 409), reply.text  # a move that cannot be
            reply = admin.get(adapter)
            if reply.status_code == 404:
                self.known.pop(name, None)
            else:
                self.known[name] = Wanted.of(reply.raise_for_status().json())


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


def until(condition: Callable[[], bool], what: str, seconds: float = BOOT) -> None:
    """Waits for what another process does: it has no event for us."""
    waiting = threading.Event()
    for _ in range(int(seconds / 0.05)):
        with contextlib.suppress(httpx2.TransportError):
            if condition():
                return
        waiting.wait(0.05)
    pytest.fail(f"never happened: {what}")


def answers(gateway: GatewayProcess, model: str) -> str | None:
    """Which adapter answered ("" for none); None when nobody did."""
    body = {"model": model, "messages": [{"role": "user", "content": "Who are you?"}], "user": "somebody"}
    reply = httpx2.post(f"{gateway.v1}/chat/completions", json=body, headers=CLIENT, timeout=BOOT, trust_env=False)
    if reply.status_code != 200:
        return None
    adapter = reply.headers.get("x-gateway-adapter", "")
    assert reply.json()["choices"][0]["message"]["content"] == f"I am {adapter or model}."
    return adapter


def page(gateway: GatewayProcess, name: str) -> dict[str, Any] | None:
    reply = httpx2.get(f"{gateway.url}/admin/v1/adapters/{name}", headers=ADMIN, timeout=LATE, trust_env=False)
    return reply.json() if reply.status_code == 200 else None


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


@repeated(4, 200)
def test_after_a_kill_what_was_acknowledged_is_so_without_anybodys_help(tmp_path: Path, repetitions: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    place = Place(tmp_path)
    desk = Desk(place.archives, rng)
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(place.running())
        for _ in range(repetitions):
            desk.enough.clear()
            mover = threading.Thread(target=desk.work, args=(gateway.url, desk.moves + rng.randrange(1, 8)))
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
