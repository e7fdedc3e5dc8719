"""Runs a program of `adapters` in the engine's environment, or in one made for training: there is torch, here not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adapters
from gateway.cli.output import Failure, complain
from gateway.cli.progress import Steps, steps

ENGINE = Path("var/engine/bin/python")

_GRACE = 30.0  # seconds for the program to remove what it had begun
_LAST_LINES = 15
_MAX_ERRORS = 1 << 16  # bytes of what it printed to stderr that are read
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",
}
# Of an environment that is not the program's.
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def python_of(given: Path | None) -> str:
    """The Python to run it with: the one given, the engine's below this folder, or `python3`.  Raises Failure."""
    if given is not None:
        return str(given.absolute())
    if ENGINE.exists():
        return str(ENGINE.absolute())
    if found := shutil.which("python3"):
        return found
    raise Failure(f"there is neither {ENGINE} here nor python3 on the PATH: give --python")


def run(python: str, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """`python -m MODULE ARGUMENTS`, with its progress shown; the line that ends it (see `adapters.merge.progress`).

    Raises Failure with the reason where it fails.  Ctrl-C asks it to end, and waits until it has cleaned up.
    """
    with _importable() as folder, tempfile.TemporaryFile() as errors, steps() as progress:
        environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", **environment, **_SETTINGS, "PYTHONPATH": folder}
        command = [python, "-m", module, *arguments]
        try:
            child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        except OSError as error:
            raise Failure(f"{python} does not start ({error.strerror}): look at --python") from None
        last: Mapping[str, Any] = {}
        try:
            for line in child.stdout or ():
                last = _parsed(line, python)
                _show(progress, last)
            status = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            raise
        finally:
            _end(child)
        if last.get("phase") == "Failed":
            raise Failure(str(last["reason"]))
        if status or last.get("phase") != "Done":
            raise Failure(f"{' '.join(command[:3])} ended with status {status}:\n{_tail(errors)}")
        return {key: value for key, value in last.items() if key != "phase"}


def _parsed(line: bytes, python: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict) and isinstance(value.get("phase"), str):
        return value
    raise Failure(
        f"{python} says {line.decode(errors='replace').strip()!a}, which is not its progress: look at --python"
    )


def _show(progress: Steps, line: Mapping[str, Any]) -> None:
    phase = line["phase"]
    if phase == "Note":
        complain(f"note: {line['text']}")
    elif phase not in ("Done", "Failed"):
        progress.show(line.get("text") or phase, line["done"], line["total"] or None)


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _tail(errors: Any) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _MAX_ERRORS))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return "\n".join(lines[-_LAST_LINES:]) or "it printed nothing"


@contextmanager
def _importable() -> Iterator[str]:
    """A folder from which only our `adapters` can be imported.

    Not the folder that holds it: that is our own environment's, whose packages would come before the program's.
    """
    with tempfile.TemporaryDirectory(prefix="lora-gateway-") as folder:
        (Path(folder) / "adapters").symlink_to(Path(adapters.__file__).resolve().parent)
        yield folder
