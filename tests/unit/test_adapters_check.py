"""The check accepts what vLLM serves rightly, and refuses what it refuses or would serve as something else."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import BaseModel, BaseModelError, Code, Finding, Inspection, RefusedError, check, required_max_lora_rank
from adapters.files import ADAPTER_FILES
from adapters.inspect import inspect
from adapters.manifest import MAX_FINDINGS, Manifest, parse_manifest
from adapters.safetensors import Tensor
from tests.fakes.adapter_corpus import CASES, SMOLLM2, TINY, Case, Craft, factor, safetensors, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel.read(write_base(tmp_path_factory.mktemp("base") / TINY.name))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_adapter_of_the_corpus_gets_the_verdict_it_deserves(case: Case, base: BaseModel, tmp_path: Path) -> None:
    verdict = check(case.write(tmp_path / "adapter"), base, max_lora_rank=16)

    assert {finding.code for finding in verdict.errors} == case.errors
    assert {finding.code for finding in verdict.warnings} == case.warnings
    assert verdict.ok is not bool(case.errors)
    for finding in verdict.findings:
        assert finding.remedy
        assert finding.message.isprintable(), "what a hostile file says reaches terminals and logs"
        assert len(finding.message) < 400
    assert json.loads(json.dumps(verdict.as_json()))["ok"] is verdict.ok


def test_the_corpus_holds_what_an_engine_serves_refuses_and_misserves() -> None:
    by_engine = {kind: [case for case in CASES if case.engine == kind] for kind in ("serves", "refuses", "misserves")}
    assert len(CASES) >= 40
    assert min(map(len, by_engine.values())) >= 20
    assert all(case.errors for case in by_engine["refuses"] + by_engine["misserves"]), "a false accept"
    assert all(bool(case.errors) is bool(case.stricter) for case in by_engine["serves"]), "strict without a reason"
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_rank_too_high_for_the_engine_names_the_flag_that_helps(base: BaseModel, tmp_path: Path) -> None:
    path = next(case for case in CASES if case.name == "rank_64").write(tmp_path / "adapter")
    [finding] = check(path, base, max_lora_rank=16).errors
    assert str(finding) == "rank 64 > 16: start the engine with --max-lora-rank 64, or merge"
    assert check(path, base, max_lora_rank=64).ok
    assert check(path, base).ok, "without an engine any rank that one can be started with is right"


@pytest.mark.parametrize(
    ("ranks", "flag"), [([], 16), ([1], 1), ([2], 8), ([8, 9], 16), ([65, 3], 128), ([300], 320), ([512], 512)]
)
def test_the_engine_is_started_with_the_smallest_rank_it_takes(ranks: list[int], flag: int) -> None:
    assert required_max_lora_rank(ranks) == flag


def test_no_engine_serves_a_rank_above_512() -> None:
    with pytest.raises(ValueError, match="513"):
        required_max_lora_rank([8, 513])


def test_without_a_base_model_the_rest_is_checked_and_the_gap_is_named(tmp_path: Path) -> None:
    craft = Craft(TINY)
    craft.write(tmp_path / "right")
    craft.poke(factor("model.layers.1.mlp.down_proj", "A"), float("nan"))
    craft.write(tmp_path / "spoilt")

    right, spoilt = check(tmp_path / "right"), check(tmp_path / "spoilt")

    assert right.ok
    assert [finding.code for finding in right.warnings] == [Code.BASE_UNKNOWN]
    assert [finding.code for finding in spoilt.errors] == [Code.NOT_FINITE]


def test_a_file_or_nothing_instead_of_a_folder_is_named(base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "nothing"):
        [finding] = check(path, base).errors
        assert finding.code is Code.FOLDER
        assert str(path) in finding.message


def test_both_files_of_an_adapter_are_judged_at_once(base: BaseModel, tmp_path: Path) -> None:
    craft = Craft(TINY)
    craft.config |= {"r": 0, "lora_alpha": "x"}
    craft.files["adapter_model.safetensors"] = b"short"
    craft.write(tmp_path / "adapter")
    codes = [finding.code for finding in check(tmp_path / "adapter", base).errors]
    assert codes == [Code.RANK, Code.FIELD, Code.HEADER]


def test_an_inspection_tells_size_and_ranks(base: BaseModel, tmp_path: Path) -> None:
    craft = Craft(TINY)
    craft.factors("model.layers.0.mlp.up_proj", 16)
    craft.config["rank_pattern"] = {"layers.0.mlp.up_proj": 16}
    craft.write(tmp_path / "adapter")

    inspection = check(tmp_path / "adapter", base).inspection

    assert inspection is not None
    assert inspection.rank == 16
    assert inspection.ranks["model.layers.0.mlp.up_proj"] == 16
    assert inspection.ranks["model.layers.1.mlp.up_proj"] == 8
    expected = sum(values.size for _, values in craft.tensors.values())
    assert (inspection.parameters, inspection.memory_bytes()) == (expected, 2 * expected)


def test_a_file_that_shrinks_while_it_is_read_is_a_verdict(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Craft(TINY).write(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"

    def truncate_after_the_header(manifest: Manifest, tensors: tuple[Tensor, ...]) -> Inspection:
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size - 1000)
        return inspect(manifest, tensors)

    monkeypatch.setattr("adapters.validate.inspect", truncate_after_the_header)
    [finding] = check(tmp_path / "adapter", base).errors
    assert finding.code is Code.FILE
    assert "shorter" in finding.message


# ---- the base model


def test_shapes_from_the_weights_and_from_the_configuration_alone_agree(tmp_path: Path) -> None:
    whole = BaseModel.read(write_base(tmp_path / "whole"))
    bare = BaseModel.read(write_base(tmp_path / "bare", weights=False))
    assert whole.shapes == bare.shapes
    assert whole.shapes["lm_head"] == (TINY.vocabulary, TINY.hidden), "tied: it shares the embedding's weights"
    assert (whole.name, whole.architecture) == ("whole", "llama")


def test_the_shards_of_a_base_model_are_read_through_its_index(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "something_new"}))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"}})
    )
    assert BaseModel.read(folder).shapes["model.layers.1.mlp.up_proj"] == (TINY.inner, TINY.hidden)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "config.json cannot be read"),
        ({"config.json": "{"}, "no JSON"),
        ({"config.json": "{}"}, "no model_type"),
        ({"config.json": '{"model_type": "mamba"}'}, "not Llama-like"),
        ({"config.json": '{"model_type": "llama"}'}, "no usable hidden_size"),
        ({"config.json": '{"model_type": "llama"}', "model.safetensors": "x"}, "no valid safetensors"),
        (
            {
                "config.json": '{"model_type": "llama"}',
                "model.safetensors.index.json": '{"weight_map": {"a": "../../x"}}',
            },
            "no weight_map",
        ),
    ],
)
def test_a_folder_that_is_no_base_model_is_named_with_the_reason(
    files: dict[str, str], says: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BaseModelError, match=says):
        BaseModel.read(tmp_path)


def test_packed_weights_have_no_shapes_to_compare_with(tmp_path: Path) -> None:
    """As bitsandbytes stores four bits: a column of bytes. Llama's shapes then follow from its configuration."""
    folder = write_base(tmp_path / "base", weights=False)
    packed = {f"{name}.weight": ("I8", np.zeros((out * into // 2, 1))) for name, (out, into) in TINY.modules().items()}
    (folder / "model.safetensors").write_bytes(safetensors(packed))
    assert BaseModel.read(folder).shapes["model.layers.0.self_attn.k_proj"] == (32, 64)

    (folder / "config.json").write_text('{"model_type": "something_new"}')
    with pytest.raises(BaseModelError, match="packed"):
        BaseModel.read(folder)


# ---- hostile configurations

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from([*Manifest.__dataclass_fields__, "lora_alpha", "peft_type", "base_model_name_or_path"])


@given(st.dictionaries(fields | st.text(max_size=10), json_values, max_size=12))
def test_any_object_is_a_manifest_or_refused_with_reasons(config: dict[str, object]) -> None:
    plain = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    read = manifest_or_findings(json.dumps(plain | config).encode())
    if isinstance(read, Manifest):
        assert 1 <= read.rank("model.layers.0.q_proj") <= read.max_rank <= 512
        assert abs(read.alpha) <= 32768
    else:
        assert 0 < len(read) <= MAX_FINDINGS
        assert all(finding.severity == "error" for finding in read)


def manifest_or_findings(data: bytes) -> Manifest | tuple[Finding, ...]:
    try:
        return parse_manifest(data)
    except RefusedError as refused:
        return refused.findings


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    with pytest.raises(RefusedError):
        parse_manifest(data)


def test_of_very_many_faults_some_are_named() -> None:
    config = {"r": 8, "lora_alpha": 16, "target_modules": [], "rank_pattern": {f"m{i}": -1 for i in range(1000)}}
    read = manifest_or_findings(json.dumps(config).encode())
    assert isinstance(read, tuple)
    assert len(read) == MAX_FINDINGS


def test_more_patterns_than_modules_could_need_are_refused_without_matching_them(tmp_path: Path) -> None:
    wide = replace(TINY, layers=60)
    craft = Craft(wide)
    craft.config["rank_pattern"] = {f".*layers.{i}.*": 8 for i in range(1000)}
    craft.write(tmp_path / "adapter")
    [finding] = check(tmp_path / "adapter").errors
    assert finding.code is Code.PATTERN
    assert "1000 keys for 420 modules" in finding.message


# ---- cost


def test_an_adapter_of_ten_megabytes_is_judged_and_the_time_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bound (under a second) is not asserted: a shared machine may be slow. Look at the figure."""
    base = BaseModel.read(write_base(tmp_path / SMOLLM2.name, SMOLLM2, weights=False))
    Craft(SMOLLM2).write(tmp_path / "adapter")
    size = sum((tmp_path / "adapter" / name).stat().st_size for name in ADAPTER_FILES)
    begin = time.perf_counter()
    verdict = check(tmp_path / "adapter", base, max_lora_rank=16)
    seconds = time.perf_counter() - begin
    shutil.rmtree(tmp_path / "adapter")
    with capsys.disabled():
        sys.stdout.write(f"\nchecked {size / 1e6:.1f} MB in {seconds * 1000:.0f} ms\n")
    assert verdict.ok, verdict.findings


def test_the_package_needs_the_standard_library_alone() -> None:
    program = "import sys, adapters; print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    found = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout
    # An editable installation registers a finder of its own.
    strangers = {name for name in eval(found) if not name.startswith("__editable__")}
    assert strangers <= {"adapters", "__main__", "_distutils_hack", "sitecustomize", "usercustomize"}
