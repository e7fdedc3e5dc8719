"""What the packages are, and what they need."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import adapters
import gateway

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "peft", "numpy", "vllm", "safetensors"}


def test_the_adapters_that_is_imported_is_ours():
    assert Path(adapters.__file__) == ROOT / "adapters" / "__init__.py"
    assert Path(gateway.__file__) == ROOT / "gateway" / "__init__.py"


def test_a_wheel_would_hold_every_package():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for package in ("gateway", "adapters")
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found


def test_the_serving_path_loads_nothing_heavy():
    code = "import sys, gateway.app, gateway.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & {name.partition(".")[0] for name in loaded}


def test_every_dependency_is_locked_with_a_hash():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        entries = re.split(r"\n(?=[a-z0-9])", text.strip())
        assert all("--hash=sha256:" in entry for entry in entries if "==" in entry), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    wanted = {re.match(r"[\w.-]+", dependency)[0].lower() for dependency in project["dependencies"]}
    assert wanted <= locked
