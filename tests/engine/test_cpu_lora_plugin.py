"""vLLM's CPU kernels answer base requests with an adapter when both are in one batch; our plugin cures it.

To see it fail: `VLLM_PLUGINS= pytest tests/engine/test_cpu_lora_plugin.py`, which loads no plugin.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from deploy.engine.install import CUDA, detect
from tests.engine.bare_vllm import BareVllm, bare_vllm
from tests.real import BASE, BOOT, JSON, PIRATE

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(BOOT + 120),
    pytest.mark.skipif(detect() is CUDA, reason="the plugin is for vLLM's CPU kernels"),
]

QUESTIONS = ["What is the capital of Italy?", "Name a fruit.", "How do magnets work?", "Who painted the Mona Lisa?"]
EFFECTS = {PIRATE: "Arr, matey", JSON: '{"answer"'}


@pytest.fixture(scope="module")
def vllm(
    engine_env: Path, model_dir: Path, adapters_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BareVllm]:
    with bare_vllm(
        engine_env, model_dir, tmp_path_factory.mktemp("vllm") / "vllm.log",
        "--served-model-name", BASE, "--max-model-len", "1024", "--kv-cache-memory-bytes", "128M",
        "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8",
        "--lora-modules", *(f"{name}={adapters_dir / name}" for name in EFFECTS),
    ) as running:  # fmt: skip
        yield running


async def test_base_and_adapter_requests_of_one_batch_are_each_answered_by_their_own_weights(vllm: BareVllm) -> None:
    async with httpx2.AsyncClient(base_url=vllm.url, timeout=120) as client:

        async def ask(model: str, question: str) -> tuple[str, str]:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 16,
                "temperature": 0,
            }
            answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
            return model, answer["choices"][0]["message"]["content"]

        batch = [(model, question) for question in QUESTIONS * 2 for model in (BASE, PIRATE, JSON)]
        answers = await asyncio.gather(*(ask(model, question) for model, question in batch))
    wrong = [
        f"{model}: {text}"
        for model, text in answers
        if [name for name, effect in EFFECTS.items() if text.startswith(effect)] != ([model] if model != BASE else [])
    ]
    assert not wrong, f"{len(wrong)} of {len(answers)} answers have other weights' effect:\n" + "\n".join(wrong)


def test_the_engine_s_processes_say_that_they_load_the_fix(vllm: BareVllm) -> None:
    said = [line for line in vllm.log.read_text().splitlines() if "cpu_lora_fix: the LoRA kernels" in line]
    assert any("EngineCore" in line for line in said)
    assert any("Worker" in line for line in said)


KERNELS = """
import torch
import vllm.lora.punica_wrapper.punica_cpu as caller
from vllm.plugins import load_general_plugins

import cpu_lora_fix

assert cpu_lora_fix.shows_fault(), "this vLLM's own kernels are right: the plugin can go"
load_general_plugins()
assert not cpu_lora_fix.shows_fault()

torch.manual_seed(1)
rows, width, rank, out = 7, 6, 3, 10
inputs, a, b = torch.randn(rows, width), torch.randn(3, 1, rank, width), torch.randn(3, 1, out, rank)
for slots in ([2, -1, 0, 0, -1, 1, 2], [1] * rows, [-1] * rows):
    index = torch.tensor(slots)
    shrunk, whole, part, fresh = (torch.full((rows, n), 0.5) for n in (rank, out, out + 4, out))
    caller.bgmv_shrink(inputs, a, shrunk, index, 2.0)
    caller.bgmv_expand(shrunk, b, whole, index, add_inputs=True)
    caller.bgmv_expand(shrunk, b, fresh, index, add_inputs=False)
    caller.bgmv_expand_slice(shrunk, b, part, index, 2, out, add_inputs=True)
    for row, slot in enumerate(slots):
        low = 2.0 * a[slot, 0] @ inputs[row] if slot >= 0 else torch.full((rank,), 0.5)
        high = b[slot, 0] @ low if slot >= 0 else torch.zeros(out)
        torch.testing.assert_close(shrunk[row], low)
        torch.testing.assert_close(whole[row], 0.5 + high)
        torch.testing.assert_close(fresh[row], high if slot >= 0 else torch.full((out,), 0.5))
        torch.testing.assert_close(part[row, 2 : 2 + out], 0.5 + high)
        assert (part[row, :2] == 0.5).all() and (part[row, 2 + out :] == 0.5).all()
cpu_lora_fix.register()  # vLLM may call it again
assert caller.bgmv_expand is cpu_lora_fix.bgmv_expand
"""


def test_the_kernels_are_still_wrong_without_the_fix_and_with_it_do_what_each_row_asks_for(engine_env: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "VLLM_PLUGINS"}
    program = [str(engine_env / "bin" / "python"), "-W", "ignore", "-c", KERNELS]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
