"""A vLLM plugin: on the CPU, requests for the base model are not answered with an adapter's weights.

In a batch vLLM gives every row the slot of its adapter, and -1 to rows of the base model. The Triton kernels skip -1;
the torch kernels, which the CPU uses, take it as an index, and Python's -1 is the *last* slot: a base request that
shares a batch with an adapter request answers as that adapter. https://github.com/vllm-project/vllm/pull/48421 and
/pull/49656 describe it; neither was merged in vLLM 0.32.0.

The three kernels here take one slot at a time and leave rows of slot -1 untouched. They are also quicker: the originals
gather a copy of the adapter's weights for every token, and multiply in bfloat16, which many processors cannot. A model
has hundreds of such layers, so that what a call costs beside its multiplication is felt in every token.

vLLM calls `register` in each of its processes (API server, EngineCore, Worker) through the entry point group
`vllm.general_plugins`. It does nothing on a GPU, nor where a probe shows that the kernels are right by themselves.
"""

from collections.abc import Iterator
from importlib.metadata import version

import torch
import vllm.lora.ops.torch_ops as exported
import vllm.lora.ops.torch_ops.lora_ops as kernels
import vllm.lora.punica_wrapper.punica_cpu as caller
from vllm.logger import init_logger
from vllm.platforms import current_platform

AFFECTED = ("0.32.",)
"""Releases whose kernels have the signatures below and were seen to have the fault."""

BASE_MODEL = -1

logger = init_logger("vllm.plugins.cpu_lora_fix")


def adapter_rows(slots: torch.Tensor, count: int) -> Iterator[tuple[int, slice | torch.Tensor]]:
    """Each adapter slot among the first `count` rows, with its rows. Rows of the base model belong to none."""
    given = slots[:count].tolist()
    present = set(given)
    for slot in present - {BASE_MODEL}:
        # A batch of one adapter is the usual case, and a slice spares two copies.
        if len(present) == 1:
            yield slot, slice(0, len(given))
        else:
            yield slot, torch.tensor([row for row, its in enumerate(given) if its == slot])


def weights_of(stacked: torch.Tensor, slot: int, like: torch.Tensor) -> torch.Tensor:
    """One slot's matrix out of (slots, out, in) or (slots, 1, out, in), in the type of `like`."""
    weights = stacked[slot]
    return (weights.squeeze(0) if weights.dim() == 3 else weights).to(like.dtype)


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """output[row] = scaling * inputs[row] @ A[slot of row].T, for rows that have an adapter."""
    for slot, rows in adapter_rows(lora_indices_tensor, inputs.shape[0]):
        weights = weights_of(lora_b_weights, slot, output_tensor)
        output_tensor[rows, : weights.shape[0]] = (inputs[rows].to(output_tensor.dtype) @ weights.T).mul_(scaling)


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """output[row] += inputs[row] @ B[slot of row].T (or = without `add_inputs`), for rows that have an adapter."""
    for slot, rows in adapter_rows(lora_indices_tensor, inputs.shape[0]):
        weights = weights_of(lora_b_weights, slot, inputs)
        width = min(weights.shape[0], output_tensor.shape[1])  # adapter and model may pad the output differently
        columns = output_tensor[:, :width]
        product = (inputs[rows] @ weights[:width].T).to(columns.dtype)
        if add_inputs:
            columns[rows] += product
        else:
            columns[rows] = product


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """bgmv_expand into the columns [slice_offset, slice_offset + slice_size) of the output."""
    columns = output_tensor[:, slice_offset : slice_offset + slice_size]
    bgmv_expand(inputs, lora_b_weights, columns, lora_indices_tensor, add_inputs)


def shows_fault() -> bool:
    """Whether vLLM's own kernel changes a row of the base model."""
    output = torch.zeros(1, 4)
    kernels.bgmv_expand(torch.ones(1, 2), torch.ones(2, 4, 2), output, torch.tensor([BASE_MODEL]))
    return bool(output.any())


def register() -> None:
    """Puts the kernels above in the place of vLLM's. May be called more than once.

    Raises RuntimeError for a release that has the fault but isn't known: one tenant's weights in another's answers
    are worse than a server that doesn't start.
    """
    if not current_platform.is_cpu() or not shows_fault():
        return
    release = version("vllm")
    if not release.startswith(AFFECTED):
        raise RuntimeError(
            f"vLLM {release} answers base requests with an adapter's weights on the CPU, and cpu_lora_fix knows only "
            f"{AFFECTED}. Compare vllm/lora/ops/torch_ops/lora_ops.py with cpu_lora_fix.py and extend AFFECTED."
        )
    for kernel in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        # The sgmv_* kernels look these names up in their own module; the other two import them from there.
        for module in (kernels, exported, caller):
            setattr(module, kernel.__name__, kernel)
    logger.info("cpu_lora_fix: the LoRA kernels of vLLM %s leave base requests alone", release)
