"""An administrator who moves adapters at random, and remembers what was acknowledged: nothing of it may be lost."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from tests import http
from tests.gateway import Running
from tests.patience import LATE

_ACTS = ("add", "add", "promote", "canary", "set", "rollback", "remove")
BOOT = 6 * LATE  # seconds: the gateway's, the engine's, and what is loaded into it


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
    """One administrator, who moves adapters until the gateway dies, or `over` is set.

    `names`, `archives`: the adapters, and the contents of their versions; `patience`: seconds for one move.  `known`:
    what the gateway acknowledged; `asked`: the name that a request was on its way for when it died.
    """

    names: Sequence[str]
    archives: Sequence[bytes]
    rng: random.Random
    patience: float = BOOT
    known: dict[str, Wanted] = field(default_factory=dict)
    asked: str | None = None
    moves: int = 0
    enough: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def work(self, gateway: Running, until: int) -> None:
        """Moves things; `enough` is set after so many moves."""
        with httpx2.Client(
            base_url=gateway.url, headers=gateway.admin_headers, timeout=self.patience, trust_env=False
        ) as admin:
            with contextlib.suppress(httpx2.HTTPError):
                while not self.over.is_set():
                    self.move(admin)
                    self.moves += 1
                    if self.moves >= until:
                        self.enough.set()
                self.asked = None

    def move(self, admin: httpx2.Client) -> None:
        name = self.rng.choice(self.names)
        self.asked = name
        now, act = self.known.get(name), self.rng.choice(_ACTS)
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


def until(condition: Callable[[], bool], what: str, seconds: float = BOOT) -> None:
    """Waits for what another process does: it has no event for us."""
    waiting = threading.Event()
    for _ in range(int(seconds / 0.05)):
        with contextlib.suppress(httpx2.TransportError):
            if condition():
                return
        waiting.wait(0.05)
    pytest.fail(f"never happened: {what}")


def page(gateway: Running, name: str) -> dict[str, Any] | None:
    """What is told of an adapter; None when there is none."""
    url = f"{gateway.url}/admin/v1/adapters/{name}"
    reply = http.get(url, headers=gateway.admin_headers, timeout=LATE, trust_env=False)
    return reply.json() if reply.status_code == 200 else None
