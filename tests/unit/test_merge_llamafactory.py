"""The export file of LLaMA-Factory: each key is used, passed over with a word, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.merge.errors import MergeError
from adapters.merge.llamafactory import ExportFile, read_export

# As in LLaMA-Factory's examples/merge_lora/llama3_lora_sft.yaml.
EXAMPLE = """
### Note: DO NOT use quantized model or quantization_bit when merging lora adapters

### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
adapter_name_or_path: saves/llama3-8b/lora/sft
template: llama3
trust_remote_code: true

### export
export_dir: output/llama3_lora_sft
export_size: 5
export_device: cpu
export_legacy_format: false
"""


def read(folder: Path, text: str) -> ExportFile:
    file = folder / "export.yaml"
    file.write_text(text)
    return read_export(file)


def test_llama_factory_s_own_example_is_understood(tmp_path: Path) -> None:
    file = read(tmp_path, EXAMPLE)
    assert file.base == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert file.adapters == ("saves/llama3-8b/lora/sft",)
    assert file.export == "output/llama3_lora_sft"
    assert (file.shard, file.dtype) == (5_000_000_000, None)
    told = [note.partition(" is passed over")[0] for note in file.notes]
    assert told == ["template", "trust_remote_code", "export_device"]


def test_the_names_of_the_tutorial_and_several_adapters_are_taken(tmp_path: Path) -> None:
    text = "path_to_base_model: a\npath_to_adapter: one, two/three\npath_to_export: b\ninfer_dtype: float32\n"
    assert read(tmp_path, text) == ExportFile("a", ("one", "two/three"), "b", "float32", None, ())
    assert read(tmp_path, "adapter_name_or_path: [x, 'y,z']").adapters == ("x", "y,z")


def test_an_unknown_key_is_said(tmp_path: Path) -> None:
    assert read(tmp_path, "flash_attn: auto").notes == ("flash_attn is passed over: it has no meaning for a merge",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("export_quantization_bit: 4", "export_quantization_bit is 4: quantise the merged model afterwards"),
        ("quantization_bit: 8", "merge into the whole model"),
        ("export_legacy_format: true", "legacy files are pickles"),
        ("finetuning_type: full", "only adapters are merged"),
        ("export_size: many", "export_size is 'many', not a number of gigabytes"),
        ("export_size: true", "not a number of gigabytes"),
        ("infer_dtype: int4", "infer_dtype is 'int4', not auto or one of bfloat16, float16, float32"),
        ("model_name_or_path: 7", "model_name_or_path is 7, not a path"),
        ("adapter_name_or_path: [1]", "not a list of paths"),
        ("model_name_or_path: a\npath_to_base_model: b", "mean the same: keep one"),
        ("- a", "is not an export file"),
        ("", "is not an export file"),
        ("a: [", "is no valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is no valid YAML"),
        ("x: " + "[" * 20_000, "is no valid YAML"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_key(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(MergeError) as refused:
        read(tmp_path, text)
    assert reason in str(refused.value)
    assert str(tmp_path / "export.yaml") in str(refused.value)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="cannot be read"):
        read_export(tmp_path / "nothing.yaml")
    with pytest.raises(MergeError, match="is not an export file"):
        read(tmp_path, "#" * (2 << 20))
