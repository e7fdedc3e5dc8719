"""How much room an engine gets for adapters when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.controlplane.config import UpstreamSettings
from gateway.controlplane.launch import LORA_RANKS, EngineSpec
from gateway.controlplane.machine import memory
from gateway.controlplane.sizing import Adapters, Sizing, engine_spec, sizing

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([], Sizing(2, 8, 16)),
        ([8, 8], Sizing(2, 8, 16)),
        ([8, 17, 4], Sizing(3, 8, 32)),
        ([200] * 6, Sizing(6, 12, 256)),
        ([512] * 100, Sizing(8, 64, 512)),
    ],
)
def test_there_is_room_for_what_is_there_and_for_some_more(ranks: list[int], expected: Sizing) -> None:
    assert sizing(Adapters(ranks)) == expected


@given(st.lists(st.integers(1, 512), max_size=30))
def test_every_adapter_fits_and_so_does_a_swap_of_each(ranks: list[int]) -> None:
    room = sizing(Adapters(ranks))
    assert room.max_lora_rank in LORA_RANKS
    assert room.max_lora_rank >= max(ranks, default=0)
    assert room.max_cpu_loras >= max(2 * len(ranks), room.max_loras)


@pytest.mark.parametrize(
    ("count", "largest", "of", "expected"),
    [
        (1000, 80 * MIB, 64 * GIB, 204),  # a quarter of the memory
        (1000, 80 * MIB, 8 * GIB, 25),
        (1000, 2 * GIB, 8 * GIB, 8),  # an engine is of no use with fewer
        (100, 10 * MIB, 64 * GIB, 200),
        (1000, 0, 64 * GIB, 64),
        (1000, 80 * MIB, 0, 64),
    ],
)
def test_a_thousand_adapters_do_not_get_more_memory_than_the_machine_should_give(
    count: int, largest: int, of: int, expected: int
) -> None:
    assert sizing(Adapters([8] * count, largest), of).max_cpu_loras == expected


def test_a_container_has_the_memory_that_it_was_given(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    machine = memory(limit)
    assert machine > 0
    for text, expected in (("1048576\n", MIB), ("max\n", machine), ("9" * 30, machine), ("", machine)):
        limit.write_text(text)
        assert memory(limit) == expected


def spec(ranks: list[int] | None, **settings: Any) -> EngineSpec:
    upstream = UpstreamSettings.model_validate(
        {"name": "local", "kind": "vllm", "engine": {"model": "var/models/Tiny-1", **settings}}
    )
    assert upstream.engine is not None
    return engine_spec(upstream, upstream.engine, None if ranks is None else Adapters(ranks))


def test_an_engine_without_sources_of_adapters_runs_without() -> None:
    assert (spec(None).max_loras, spec(None).max_cpu_loras) == (0, 0)


def test_the_file_decides_where_it_says_something() -> None:
    said = spec([8] * 20, max_loras=4, max_cpu_loras=5, max_lora_rank=64)
    assert (said.max_loras, said.max_cpu_loras, said.max_lora_rank) == (4, 5, 64)
    few = spec([8] * 20, max_cpu_loras=3)
    assert (few.max_loras, few.max_cpu_loras) == (3, 3)
    many = spec([8], max_loras=30)
    assert (many.max_loras, many.max_cpu_loras) == (30, 30)
    assert spec(None, max_loras=2).max_cpu_loras == 8


def test_the_engine_is_the_one_of_the_file() -> None:
    said = spec([], command=["var/engine/bin/vllm"], args=["--max-model-len", "2048"], queue=7)
    assert (said.model, said.served_name, said.queue) == ("var/models/Tiny-1", "Tiny-1", 7)
    assert (said.command, said.args) == (("var/engine/bin/vllm",), ("--max-model-len", "2048"))
