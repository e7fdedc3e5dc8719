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
_LEAST_RANK = 16  # peft's examples and most published adapters have no more


@dataclass(frozen=True, slots=True)
class Sizing:
    """vLLM's three numbers: adapters in one batch, adapters in memory, the largest rank."""

    max_loras: int
    max_cpu_loras: int
    max_lora_rank: int


def sizing(ranks: Collection[int]) -> Sizing:
    """The room for adapters of these ranks.

    A swap holds two versions of an adapter for a while, so there is memory for twice as many: vLLM reads what was
    evicted from disk again, at the cost of the request that needs it.
    """
    loras = min(max(len(ranks), _LEAST_LORAS), _MOST_LORAS)
    return Sizing(loras, max(2 * len(ranks), _LEAST_CPU_LORAS), lora_rank(max([_LEAST_RANK, *ranks])))


def engine_spec(upstream: UpstreamSettings, engine: EngineSettings, ranks: Collection[int] | None) -> EngineSpec:
    """The engine of the configuration; `ranks`: of the adapters that it is to hold, None where there are no sources of
    adapters and it runs without (and somewhat faster)."""
    room = sizing(ranks or ())
    loras = cpu_loras = 0
    if ranks is not None or engine.max_loras is not None:
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
