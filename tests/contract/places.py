"""Where the contract is tested: a gateway over one server of each kind, fake or real.

A dialect that is added to BACKENDS needs a line in FAKES: a server of its kind with the models of `SCENARIOS`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes import faults
from tests.fakes.ollama import OllamaServer, Pace, error_line, refusal
from tests.fakes.ollama_dialect import Model
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.fakes.upstream import Behaviour, Upstream
from tests.gateway import Running, running_gateway

#: Names that must survive a URL's path.
ODD = ("org/model:7b@q4_K_M", "model%2Fname", "名前")
STATUSES = (400, 401, 404, 409, 422, 429, 500, 501, 503)

#: A choice of tools.
NAMED = {"type": "function", "function": {"name": "weather"}}

#: Model → what it does, for each fake: "m" is fair, "asked" says each word when the test wants it, "sliced" sends
#: single bytes, "cut" and "errs" break after two words, "stalls" says two and no more, "hangs" never answers,
#: "status-…" answers with that status, "uncounted" has no usage, "vectors" embeds.
SCENARIOS = (
    "m", "asked", "sliced", "cut", "errs", "stalls", "hangs", *(f"status-{status}" for status in STATUSES),
    "uncounted", "vectors", *ODD,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway and what it offers.  `embeds`: a model for embeddings; `lacks`: what its kind has not."""

    kind: str
    gateway: Running
    chat: str
    embeds: str | None
    lacks: frozenset[str] = frozenset()
    server: Upstream | None = None

    @property
    def auth(self) -> list[tuple[str, str]]:
        """Headers of a client that may."""
        return list(self.gateway.headers.items())


def _openai() -> OpenAIUpstream:
    failing = faults.error_event({"message": "scripted", "type": "server_error", "code": 500}, done=True)
    special: dict[str, Behaviour] = {
        "asked": Script(on_demand=True),
        "sliced": Script(slices=1),
        "cut": Script(itl=0.02, after=2, fault=faults.cut),
        "errs": Script(itl=0.02, after=2, fault=failing),
        "stalls": Script(after=2, fault=faults.hang),
        "hangs": faults.hang,
        "uncounted": Script(usage=lambda usage: None),
        **{f"status-{status}": faults.refuse(status) for status in STATUSES},
    }
    return OpenAIUpstream({name: special.get(name, Script()) for name in SCENARIOS})


def _ollama() -> OllamaServer:
    special = {"vectors": Model(("embedding",)), "uncounted": Model(counted=False)}
    paces = {
        "asked": Pace(on_demand=True),
        "sliced": Pace(slices=1),
        "cut": Pace(itl=0.02, after=2, fault=faults.cut),
        "errs": Pace(itl=0.02, after=2, fault=error_line("scripted")),
        "stalls": Pace(after=2, fault=faults.hang),
        "hangs": Pace(instead=faults.hang),
        **{f"status-{status}": Pace(instead=refusal(status, "scripted")) for status in STATUSES},
    }
    return OllamaServer(
        {_tagged(name): special.get(name, Model()) for name in SCENARIOS},
        paces={_tagged(name): pace for name, pace in paces.items()},
    )


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


FAKES: Mapping[str, Callable[[], OpenAIUpstream | OllamaServer]] = {
    "openai": _openai,
    "vllm": _openai,
    "ollama": _ollama,
}

#: What a kind cannot do, and says so.
LACKS: Mapping[str, frozenset[str]] = {"ollama": frozenset({"n", str(NAMED), "required"})}


@asynccontextmanager
async def fake_place(kind: str, folder: Path, **sections: Any) -> AsyncIterator[Place]:
    """A gateway over the fake of this kind; `sections` go into its file."""
    async with FAKES[kind]() as server:
        upstream = {
            "name": "u",
            "kind": kind,
            "base_url": server.url,
            "models": list(SCENARIOS),
            "timeouts": {"first_byte": 30, "byte_idle": 30},
        }
        async with running_gateway({"upstreams": [upstream], **sections}, folder) as gateway:
            yield Place(kind, gateway, "m", "vectors", LACKS.get(kind, frozenset()), server)
