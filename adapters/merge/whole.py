"""The way of merging that knows every kind of adapter: peft's own, with the whole model in memory."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.merge.errors import MergeError

_UNUSED = ("missing adapter keys", "unexpected keys")


def load(folder: Path, dtype: str | None, device: str = "cpu") -> Any:
    """The model in `folder`; `dtype` as torch names it, None: its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", local_files_only=True)
    return model.to(device).eval()


def adapted(model: Any, adapter: Path) -> Any:
    """The model with its adapter beside its weights. Raises MergeError where parts of the adapter find no place.

    peft only warns of those, and the model would answer as if they did not exist.
    """
    _grow(model, adapter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
        except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
            raise MergeError(f"peft does not take {adapter}: {_brief(error)}") from error
    for warning in caught:
        if any(words in str(warning.message) for words in _UNUSED):
            raise MergeError(f"{adapter} does not fit the base model: {_brief(warning.message)}")
    return model.eval()


def merged(model: Any, adapters: Sequence[Path]) -> Any:
    """The model with the adapters merged into its weights, one after another. Raises MergeError."""
    for adapter in adapters:
        try:
            model = adapted(model, adapter).merge_and_unload()
        except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise MergeError(f"peft cannot merge {adapter}: {_brief(error)}") from error
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise MergeError(
                f"{name} is not finite after the merge: the adapter or the base model holds NaN or infinity"
            )
    return model


def write_model(base: Path, adapters: Sequence[Path], folder: Path, dtype: str | None, limit: int) -> None:
    """Merges through peft and writes weights and configuration into `folder`. Raises MergeError."""
    model = merged(load(base, dtype), adapters)
    model.save_pretrained(folder, max_shard_size=limit)


def _grow(model: Any, adapter: Path) -> None:
    """Makes room for the tokens that the adapter brings embeddings for: peft loads only what has the same shape."""
    from safetensors import safe_open  # noqa: PLC0415

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    rows = {
        shape[0]
        for name, shape in shapes.items()
        if name.endswith((".embed_tokens.weight", ".embed_tokens.base_layer.weight", ".wte.weight"))
    }
    if len(rows) == 1 and (size := rows.pop()) != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(size, mean_resizing=False)


def _brief(error: object) -> str:
    """The first line, cut: peft lists every module."""
    return json.dumps((str(error).strip().splitlines() or [type(error).__name__])[0][:300])
