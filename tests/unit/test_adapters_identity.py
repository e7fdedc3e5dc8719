"""An adapter is told from one of another base model of the same shapes, by what it and the model say of themselves."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from adapters import BaseModel, Code, Verdict, check
from adapters.base_model import model_name
from adapters.identity import digests
from adapters.manifest import BASE_DIGESTS
from tests.fakes.adapter_corpus import SMOLLM2, TINY, Craft, safetensors, write_base
from tests.fakes.adapter_corpus.craft import EMBEDDING

COMMIT, ANOTHER = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base" / TINY.name)


def judged(craft: Craft, base: Path, folder: Path) -> Verdict:
    craft.write(folder)
    return check(folder, BaseModel.read(base), max_lora_rank=16)


def recorded(base: Path) -> Craft:
    craft = Craft(TINY)
    craft.config[BASE_DIGESTS] = digests(base)
    return craft


def rewritten(base: Path, **changes: tuple[str, np.ndarray]) -> None:
    (base / "model.safetensors").write_bytes(safetensors(TINY.weights() | changes))


def test_a_sibling_with_the_same_name_and_shapes_is_refused(base: Path, tmp_path: Path) -> None:
    craft = recorded(base)
    trained_further = {n: (d, v * 1.01) for n, (d, v) in TINY.weights().items()}
    rewritten(base, **trained_further)
    [finding] = judged(craft, base, tmp_path / "adapter").errors
    assert finding.code is Code.BASE
    assert BASE_DIGESTS in finding.remedy


def test_the_same_weights_are_the_same_model_however_they_lie_in_files(base: Path, tmp_path: Path) -> None:
    craft = recorded(base)
    tensors = TINY.weights()
    (base / "model.safetensors").unlink()
    halves = dict(sorted(tensors.items())[::2]), dict(sorted(tensors.items())[1::2])
    for number, half in enumerate(halves):
        (base / f"part-{number}.safetensors").write_bytes(safetensors(half, metadata=False))
    index = {name: f"part-{number}.safetensors" for number, half in enumerate(halves) for name in half}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert judged(craft, base, tmp_path / "adapter").findings == ()


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"transformers_version": "9.9.9", "use_cache": False, "dtype": "float16"}, []),
        ({"rope_theta": 5.0}, [Code.BASE_CONFIG]),
    ],
)
def test_what_a_copy_changes_in_the_configuration_is_no_other_model(
    changes: dict[str, object], codes: list[Code], base: Path, tmp_path: Path
) -> None:
    craft = recorded(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes, indent=2))
    verdict = judged(craft, base, tmp_path / "adapter")
    assert [finding.code for finding in verdict.findings] == codes
    assert verdict.ok


def quantised(base: Path) -> None:
    packed = {f"{n}.weight": ("I8", np.ones((o * i // 2, 1))) for n, (o, i) in TINY.modules().items()}
    rewritten(base, **packed)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))


def test_a_quantised_copy_is_the_model_that_it_was_made_of(base: Path, tmp_path: Path) -> None:
    craft = recorded(base)
    quantised(base)
    assert judged(craft, base, tmp_path / "adapter").findings == ()


def test_a_quantised_copy_of_a_model_with_another_configuration_is_refused(base: Path, tmp_path: Path) -> None:
    craft = recorded(base)
    quantised(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    assert [finding.code for finding in judged(craft, base, tmp_path / "adapter").errors] == [Code.BASE]


@pytest.mark.parametrize(("trained", "served"), [("BF16", "BF16"), ("F32", "BF16"), ("BF16", "F32"), ("F16", "BF16")])
@pytest.mark.parametrize("another", [False, True], ids=["same", "another"])
def test_pefts_copy_of_the_embedding_tells_the_model_whatever_types_it_is_stored_in(
    trained: str, served: str, another: bool, base: Path, tmp_path: Path
) -> None:
    name = f"{EMBEDDING}.weight"
    _, values = TINY.weights()[name]
    values = (values.astype("<f4").view("<u4") & 0xFFFF0000).view("<f4")  # as bfloat16 keeps them
    rewritten(base, **{name: (served, values)})
    craft = Craft(TINY)
    craft.embedding(TINY.vocabulary)
    copy = values[::-1].copy() if another else values
    craft.tensors[f"base_model.model.{EMBEDDING}.base_layer.weight"] = (trained, copy)
    errors = [finding.code for finding in judged(craft, base, tmp_path / "adapter").errors]
    assert errors == ([Code.BASE] if another else [])


def cached(base: Path, commit: str) -> Path:
    """The base model as the hub's client keeps it."""
    folder = base.parent / "hub" / f"models--somebody--{TINY.name}" / "snapshots" / commit
    folder.parent.mkdir(parents=True)
    os.rename(base, folder)
    return folder


def test_in_the_hubs_cache_a_model_has_the_name_and_the_commit_that_it_was_fetched_by(base: Path) -> None:
    found = BaseModel.read(cached(base, COMMIT))
    assert (found.name, found.revision) == (TINY.name, COMMIT)


HUB = {"base_model_name_or_path": f"somebody/{TINY.name}"}
CACHE = f"/data/hub/models--somebody--{TINY.name}/snapshots"


@pytest.mark.parametrize(
    ("config", "codes"),
    [
        (HUB | {"revision": COMMIT}, []),
        (HUB | {"revision": None}, []),
        (HUB | {"revision": "main"}, []),
        (HUB | {"revision": ANOTHER}, [Code.BASE_REVISION]),
        ({"base_model_name_or_path": f"{CACHE}/{COMMIT}"}, []),
        ({"base_model_name_or_path": f"{CACHE}/{ANOTHER}"}, [Code.BASE_REVISION]),
    ],
)
def test_another_commit_than_the_one_that_is_served_is_a_warning(
    config: dict[str, object], codes: list[Code], base: Path, tmp_path: Path
) -> None:
    craft = Craft(TINY)
    craft.config |= config
    verdict = judged(craft, cached(base, COMMIT), tmp_path / "adapter")
    assert verdict.ok
    assert [finding.code for finding in verdict.warnings] == codes


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("/models/Qwen3-8B/", "Qwen3-8B"),
        ("C:\\models\\Qwen3-8B", "Qwen3-8B"),
        (f"/root/hub/models--Qwen--Qwen3-8B/snapshots/{COMMIT}", "Qwen3-8B"),
        ("", ""),
    ],
)
def test_a_model_has_one_name_wherever_it_lies(path: str, name: str) -> None:
    assert model_name(path)[0] == name


def test_a_base_model_that_goes_while_an_adapter_is_judged_is_told(base: Path, tmp_path: Path) -> None:
    model = BaseModel.read(base)
    recorded(base).write(tmp_path / "adapter")
    (base / "config.json").unlink()
    verdict = check(tmp_path / "adapter", model, max_lora_rank=16)
    assert [finding.code for finding in verdict.warnings] == [Code.BASE_UNKNOWN]
    assert "config.json" in verdict.warnings[0].message


def test_an_engines_slot_is_as_large_as_vllm_makes_it(tmp_path: Path) -> None:
    """Figures of SmolLM2-135M at rank 16 and 64, from an engine's own account of its memory."""
    model = BaseModel.read(write_base(tmp_path / SMOLLM2.name, SMOLLM2, weights=False))
    assert [round(model.slot_bytes(rank) / 1e6) for rank in (16, 64)] == [13, 52]
    craft = Craft(TINY)
    craft.write(tmp_path / "adapter")
    base = BaseModel.read(write_base(tmp_path / TINY.name))
    told = check(tmp_path / "adapter", base, max_lora_rank=16).as_json()["adapter"]
    assert isinstance(told, dict)
    assert told["slot_bytes"] == base.slot_bytes(16)
    assert told["memory_bytes"] == 2 * sum(values.size for _, values in craft.tensors.values())
