"""What a merge will do is known from headers alone, and what it must not do is refused before a byte is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.merge.checkpoint import Checkpoint
from adapters.merge.errors import MergeError, NotStreamableError
from adapters.merge.plan import Plan, make_plan
from adapters.merge.recipe import LowRank, Replacement, find_adapter, read_recipe
from tests.fakes.adapter_corpus import TINY, Craft, safetensors, write_base

Q = "model.layers.0.self_attn.q_proj"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return Checkpoint.read(write_base(tmp_path / "tiny-llama"))


def plan(base: Checkpoint, change: Callable[[Craft], object], dtype: str | None = None) -> Plan:
    """Of an adapter with that change."""
    craft = Craft(TINY)
    change(craft)
    folder = base.folder.parent / "adapter"
    craft.write(folder)
    return make_plan(base, [read_recipe(folder, base)], dtype)


def config(**fields: Any) -> Callable[[Craft], object]:
    return lambda craft: craft.config.update(fields)


def test_a_plain_adapter_changes_its_modules_and_nothing_else(base: Checkpoint) -> None:
    made = plan(base, lambda craft: craft.keep(Q))
    changed = {output.name: output for output in made.outputs if not output.copied}
    assert set(changed) == {f"{Q}.weight"}
    (change,) = changed[f"{Q}.weight"].changes
    assert isinstance(change, LowRank)
    assert (change.scale, change.transposed) == (2.0, False)
    assert [output.name for output in made.outputs] == list(base.tensors)
    assert not made.config


def test_the_scale_is_the_one_it_was_trained_with(base: Checkpoint) -> None:
    def patterns(craft: Craft) -> None:
        craft.config |= {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {Q: 32}}
        for layer in range(2):
            craft.factors(f"model.layers.{layer}.self_attn.q_proj", 4)

    scales = {o.name: c.scale for o in plan(base, patterns).outputs for c in o.changes if isinstance(c, LowRank)}
    assert scales[f"{Q}.weight"] == 16.0
    assert scales["model.layers.1.self_attn.q_proj.weight"] == 8.0
    assert scales["model.layers.0.mlp.up_proj.weight"] == pytest.approx(16 / 8**0.5)


def test_a_dtype_is_given_to_every_tensor_and_to_the_configuration(base: Checkpoint) -> None:
    made = plan(base, lambda craft: None, "F32")
    assert {output.dtype for output in made.outputs} == {"F32"}
    assert not any(output.copied for output in made.outputs)
    assert made.config == {"torch_dtype": "float32"}
    assert made.size == 2 * base.size


@pytest.mark.parametrize("change", [Craft.output_layer, lambda craft: craft.embedding(TINY.vocabulary)])
def test_an_adapter_of_one_end_unties_both(base: Checkpoint, change: Callable[[Craft], object]) -> None:
    made = plan(base, change)
    outputs = {output.name: output for output in made.outputs}
    assert made.config == {"tie_word_embeddings": False}
    assert outputs[HEAD].source == outputs[EMBEDDING].source
    assert sorted(len(outputs[name].changes) for name in (HEAD, EMBEDDING)) == [0, 1]


def test_modules_that_the_adapter_replaces_are_taken_as_they_are(base: Checkpoint) -> None:
    def saves(craft: Craft) -> None:
        craft.config["modules_to_save"] = ["lm_head", "embed_tokens"]
        for name in (HEAD, EMBEDDING):
            craft.tensors[f"base_model.model.{name}"] = ("F32", craft.values(TINY.vocabulary + 5, TINY.hidden))

    made = plan(base, saves)
    outputs = {output.name: output for output in made.outputs}
    for name in (HEAD, EMBEDDING):
        assert isinstance(outputs[name].changes[0], Replacement)
        assert outputs[name].shape == (TINY.vocabulary + 5, TINY.hidden)
        assert outputs[name].dtype == "BF16"
    assert made.config == {"tie_word_embeddings": False, "vocab_size": TINY.vocabulary + 5}
    assert made.vocabulary == TINY.vocabulary + 5


def test_a_vocabulary_that_grew_at_one_end_only_is_refused(base: Checkpoint) -> None:
    def saves(craft: Craft) -> None:
        values = craft.values(TINY.vocabulary + 5, TINY.hidden)
        craft.tensors[f"base_model.model.{EMBEDDING}"] = ("F32", values)

    with pytest.raises(MergeError, match="for one end of the model only"):
        plan(base, saves)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (config(use_dora=True), "a DoRA"),
        (config(lora_bias=True), "lora_bias"),
        (config(init_lora_weights="pissa"), "pissa"),
        (config(target_parameters=["mlp.experts.gate_up_proj"]), "target_parameters"),
        (config(trainable_token_indices=[1, 2]), "trainable_token_indices"),
        (config(peft_type="LOHA"), "LOHA"),
        (config(r=1024), "1024"),
        (lambda craft: craft.tensors.update({"base_model.model.x.lora_E": ("F32", np.ones((2, 2)))}), "lora_E"),
    ],
)
def test_what_is_more_than_w_plus_ba_is_left_to_peft(
    base: Checkpoint, change: Callable[[Craft], object], reason: str
) -> None:
    with pytest.raises(NotStreamableError, match=reason):
        plan(base, change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda craft: craft.factors("model.layers.7.mlp.up_proj", 8, (96, 64)), "has no module .*layers.7"),
        (lambda craft: craft.factors(Q, 8, (64, 65)), r"q_proj is \[64, 64\], the adapter's \[64, 65\]"),
        (config(r=16), "declares rank 16 .* have 8"),
        (config(task_type="SEQ_CLS"), "SEQ_CLS"),
        (config(auto_map={"x": "y"}), "auto_map"),
        (lambda craft: craft.tensors.pop(f"base_model.model.{Q}.lora_B.weight"), "other half"),
        (lambda craft: craft.factors(Q, 8, dtype="F8_E4M3"), "F8_E4M3"),
        (lambda craft: craft.files.update({"adapter_model.safetensors": b"no"}), "no valid safetensors"),
        (lambda craft: craft.files.update({"adapter_config.json": b"{"}), "no valid JSON"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(
    base: Checkpoint, change: Callable[[Craft], object], reason: str
) -> None:
    with pytest.raises(MergeError, match=reason):
        plan(base, change)


def test_a_pickle_is_not_opened(base: Checkpoint, tmp_path: Path) -> None:
    Craft(TINY).write(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(MergeError, match=r"a pickle .*only safetensors are taken"):
        read_recipe(tmp_path / "adapter", base)


def test_the_newest_checkpoint_of_a_training_is_found(tmp_path: Path) -> None:
    for step in (9, 10):
        Craft(TINY).write(tmp_path / f"checkpoint-{step}")
    assert find_adapter(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "bare").mkdir()
    with pytest.raises(MergeError, match=r"there is no adapter_config\.json"):
        find_adapter(tmp_path / "bare")
    with pytest.raises(MergeError, match="not a folder that can be read"):
        find_adapter(tmp_path / "nothing")


class TestBase:
    def refused(self, folder: Path) -> str:
        with pytest.raises(MergeError) as refused:
            Checkpoint.read(folder)
        return str(refused.value)

    def test_a_quantised_one_is_refused_whatever_says_so(self, tmp_path: Path) -> None:
        folder = write_base(tmp_path / "base")
        told = TINY.config() | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        (folder / "config.json").write_text(json.dumps(told))
        assert "quantised (config.json has a quantization_config): merge into the model" in self.refused(folder)

        (folder / "config.json").write_text(json.dumps(TINY.config()))
        weights = TINY.weights() | {f"{Q}.weight": ("I8", np.ones((64, 64)))}
        (folder / "model.safetensors").write_bytes(safetensors(weights))
        assert f"quantised (tensor {Q}.weight is I8)" in self.refused(folder)

    def test_pickles_an_empty_folder_and_no_folder_are_told_apart(self, tmp_path: Path) -> None:
        folder = write_base(tmp_path / "base", weights=False)
        assert "is this a model?" in self.refused(folder)
        (folder / "pytorch_model.bin").touch()
        assert "weights as pickles" in self.refused(folder)
        (folder / "model.safetensors").write_bytes(b"x" * 20)
        assert "no valid safetensors file" in self.refused(folder)
        assert "is not a folder" in self.refused(tmp_path / "nothing")

    def test_several_files_are_one_model(self, tmp_path: Path) -> None:
        folder = write_base(tmp_path / "base")
        whole = Checkpoint.read(folder)
        names = list(TINY.weights())
        parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
        for file, part in parts.items():
            (folder / file).write_bytes(safetensors({name: TINY.weights()[name] for name in part}))
        (folder / "model.safetensors").unlink()
        where = {name: file for file, part in parts.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        split = Checkpoint.read(folder)
        assert list(split.tensors) == list(whole.tensors)
        assert split.size == whole.size


def test_several_adapters_are_applied_in_their_order(base: Checkpoint, tmp_path: Path) -> None:
    recipes = []
    for name, alpha in (("one", 16), ("two", 32)):
        craft = Craft(TINY)
        craft.config["lora_alpha"] = alpha
        craft.write(tmp_path / name)
        recipes.append(read_recipe(tmp_path / name, base))
    outputs = {output.name: output for output in make_plan(base, recipes, None).outputs}
    assert [change.scale for change in outputs[f"{Q}.weight"].changes if isinstance(change, LowRank)] == [2.0, 4.0]
    renamed = replace(outputs[f"{Q}.weight"], changes=())
    assert renamed.copied
