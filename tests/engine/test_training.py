"""Training on the real model: repeatable, and what it writes is safe to hand on."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from adapters import BaseModel, check
from adapters.identity import digests
from tests.real import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PIRATE_DATA = ROOT / "adapters" / "data" / "pirate.alpaca.json"


def training(engine_env: Path, model_dir: Path, data: Path, out: Path) -> subprocess.Popen[str]:
    python = str(engine_env / "bin" / "python")
    command = [python, "-m", "adapters.train", "--base", str(model_dir), "--data", str(data), "--out", str(out)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, "--steps", "2"], cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_same_seed_gives_the_same_adapter_that_the_gateway_takes(
    engine_env: Path, model_dir: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "one" / "pirate", tmp_path / "two" / "pirate"]
    running = [training(engine_env, model_dir, PIRATE_DATA, folder) for folder in folders]
    for process in running:
        said, complaints = process.communicate(timeout=240)
        assert process.returncode == 0, complaints
        assert [line.split(" loss")[0] for line in said.splitlines()] == ["1/2", "2/2"]

    files = {path.name: path for path in folders[0].iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files.values())
    assert [path.name for path in folders[0].parent.iterdir()] == ["pirate"], "nothing else is left behind"
    for name, path in files.items():
        assert path.read_bytes() == (folders[1] / name).read_bytes()

    config = json.loads(files["adapter_config.json"].read_text())
    assert config["base_model_name_or_path"] == model_dir.name
    assert config["base_model_digests"] == digests(model_dir)
    assert str(ROOT) not in files["adapter_config.json"].read_text()
    verdict = check(folders[0], BaseModel.read(model_dir), max_lora_rank=16)
    assert verdict.ok, verdict
    assert not verdict.warnings, verdict


def test_a_bad_row_ends_the_training_before_it_begins(engine_env: Path, model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "bad.json"
    data.write_text('[{"instruction": "a"}]')
    process = training(engine_env, model_dir, data, tmp_path / "out")
    said, complaints = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said == ""
    assert "bad.json, row 1: `output` must be a string" in complaints
    assert not (tmp_path / "out").exists()
