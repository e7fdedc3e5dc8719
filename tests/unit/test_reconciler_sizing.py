"""How much room an engine gets for adapters when it starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.controlplane.config import UpstreamSettings
from gateway.controlplane.launch import LORA_RANKS, EngineSpec
from gateway.controlplane.sizing import Sizing, engine_spec, sizing


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([], Sizing(2, 8, 16)),
        ([8, 8], Sizing(2, 8, 16)),
        ([8, 17, 4], Sizing(3, 8, 32)),
        ([200] * 6, Sizing(6, 12, 256)),
        ([512] * 100, Sizing(8, 200, 512)),
    ],
)
def test_there_is_room_for_what_is_there_and_for_some_more(ranks: list[int], expected: Sizing) -> None:
    assert sizing(ranks) == expected


@given(st.lists(st.integers(1, 512), max_size=50))
def test_every_adapter_fits_and_so_does_a_swap_of_each(ranks: list[int]) -> None:
    room = sizing(ranks)
    assert room.max_lora_rank in LORA_RANKS
    assert room.max_lora_rank >= max(ranks, default=0)
    assert room.max_cpu_loras >= max(2 * len(ranks), room.max_loras)


def spec(ranks: list[int] | None, **settings: Any) -> EngineSpec:
    upstream = UpstreamSettings.model_validate(
        {"name": "local", "kind": "vllm", "engine": {"model": "var/models/Tiny-1", **settings}}
    )
    assert upstream.engine is not None
    return engine_spec(upstream, upstream.engine, ranks)


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
