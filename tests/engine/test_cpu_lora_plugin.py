"""vLLM's CPU kernels answer base requests with an adapter when both are in one batch; our plugin cures it.

What people see of it is in test_gateway_on_vllm.py, `..._in_one_batch_are_each_right`.  To see that fail:
`VLLM_PLUGINS= pytest tests/engine`, which loads no plugin.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from deploy.engine.install import CUDA, detect
from tests.real import BOOT, Served

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(BOOT + 120),
    pytest.mark.skipif(detect() is CUDA, reason="the plugin is for vLLM's CPU kernels"),
]


def test_the_engine_s_processes_say_that_they_load_the_fix(real: Served) -> None:
    said = [line for line in real.gateway.log.read_text().splitlines() if "cpu_lora_fix: the LoRA kernels" in line]
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
