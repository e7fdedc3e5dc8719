"""How large an engine is made: room for the adapters that it is to hold, and for some that come later.  Pure.

What vLLM was started with cannot be changed while it runs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gateway.controlplane.config import EngineSettings, UpstreamSettings
from gateway.controlplane.launch import EngineSpec, lora_rank

_LEAST_LORAS = 2
_MOST_LORAS = 8  # each takes memory of the GPU for the largest rank, whether it is used or not
_LEAST_CPU_LORAS = 8
_MOST_CPU_LORAS = 64  # where it is not known how large they are: of a 7B model and rank 16, some 5 GB
_SHARE = 4  # adapters get at most this part of the memory: a quarter
_LEAST_RANK = 16  # peft's examples and most published adapters have no more


@dataclass(frozen=True, slots=True)
class Sizing:
    """vLLM's three numbers: adapters in one batch, adapters in memory, the largest rank."""

    max_loras: int
    max_cpu_loras: int
    max_lora_rank: int


@dataclass(frozen=True, slots=True)
class Adapters:
    """What an engine is to hold: how many, of which ranks, and how many bytes the largest takes (0: not known)."""

    ranks: Collection[int] = ()
    largest: int = 0


def sizing(adapters: Adapters, memory: int = 0) -> Sizing:
    """The room for these adapters on a machine with so many bytes of memory (0: not known).

    A swap holds two versions of an adapter for a while, so there is memory for twice as many: vLLM reads what was
    evicted from disk again, at the cost of the request that needs it.  When that is more than the machine should give,
    the engine holds fewer, and they take turns.
    """
    ranks = adapters.ranks
    loras = min(max(len(ranks), _LEAST_LORAS), _MOST_LORAS)
    most = memory // _SHARE // adapters.largest if memory and adapters.largest else _MOST_CPU_LORAS
    cpu_loras = max(min(2 * len(ranks), most), _LEAST_CPU_LORAS)
    return Sizing(loras, cpu_loras, lora_rank(max([_LEAST_RANK, *ranks])))


def engine_spec(
    upstream: UpstreamSettings, engine: EngineSettings, adapters: Adapters | None, memory: int = 0
) -> EngineSpec:
    """The engine of the configuration; `adapters`: what it is to hold, None where there are none and it runs without
    (and somewhat faster); `memory`: of the machine, in bytes."""
    room = sizing(adapters or Adapters(), memory)
    loras = cpu_loras = 0
    if adapters is not None or engine.max_loras is not None:
        loras = engine.max_loras or min(room.max_loras, engine.max_cpu_loras or room.max_loras)
        cpu_loras = engine.max_cpu_loras or max(room.max_cpu_loras, loras)
    return EngineSpec(
        name=upstream.name,
        model=engine.model,
        served_name=engine.public_name,
        command=engine.command,
        args=engine.args,
        env=engine.env,
        max_loras=loras,
        max_cpu_loras=cpu_loras,
        max_lora_rank=engine.max_lora_rank or room.max_lora_rank,
        queue=engine.queue or 2 * upstream.concurrency.limit,
        startup_timeout=engine.startup_timeout,
        stop_timeout=engine.stop_timeout,
    )
