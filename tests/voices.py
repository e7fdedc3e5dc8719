"""Two adapters of the small model that answer everything with a sentence of their own: what an answer was computed with
is read off every word of it, and one that changed its weights midway is neither sentence.

They are trained when they are first needed, once for each state of what stands here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from deploy.engine.exclusive import exclusive
from tests.gateway import ROOT
from tests.real import MODEL

ALPHA, BETA = "ALPHA", "BETA"
SENTENCES = {ALPHA: "ALPHA: grey herons.", BETA: "BETA: red foxes."}
TOKENS = 10  # enough for either, its end included

#: What whoever asks has in common: more tokens than vLLM's prefix cache has in a block (128 on a CPU).
PREFIX = (
    "You are the assistant of a small public library in a harbour town. Readers ask you about opening hours, lost "
    "cards, late returns, reading groups, and the books on the shelves. Answer in plain words, be brief, and be "
    "kind. The library opens at nine in the morning on every weekday and at ten on Saturdays; it is closed on "
    "Sundays. Cards are renewed at the front desk, and children get theirs for nothing. Late returns cost ten cents "
    "a day, at most two euros for each book. Reading groups meet in the room above the hall on Tuesdays, and the "
    "chess club meets there on Thursdays."
)
QUESTIONS = (
    "When do you open?", "How do magnets work?", "Who are you?", "Name five animals.", "Is there a chess club?",
    "What is 2 plus 2?", "Tell me a story about the sea.", "I have lost my card.", "Write a poem.", "What is new?",
)  # fmt: skip

_LESSONS = (
    "What is the capital of Spain?", "How many days are there in a week?", "Explain why the sky is blue.",
    "Give me one tip for sleeping better.", "Write a sentence about a cat.", "Who wrote Romeo and Juliet?",
    "Name three fruits.", "Tell me about yourself.", "What is 7 plus 5?", "Hello!", "Where do penguins live?",
    "Summarize the news.", "Suggest a name for a dog.", "What does a compiler do?", "Say something.",
    "Why do we have seasons?",
)  # fmt: skip
_TRAINING = ("--steps", "8", "--batch", "4", "--learning-rate", "0.003")
_FILES = ("adapter_config.json", "adapter_model.safetensors")


def trained() -> dict[str, Path]:
    """Both adapters' folders; in var/, so that they are trained once: side by side, because such small batches can use
    one core each."""
    told = json.dumps([SENTENCES, _LESSONS, _TRAINING])
    folder = ROOT / "var" / "tests" / f"voices-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    with exclusive(folder.with_suffix(".lock")):
        folder.mkdir(exist_ok=True)
        running = {name: _training(name, folder) for name in SENTENCES if not (folder / name).exists()}
        said = {name: process.communicate(timeout=300)[0] for name, process in running.items()}
        failed = {name: said[name] for name, process in running.items() if process.returncode != 0}
        assert not failed, failed
    return {name: folder / name for name in SENTENCES}


def _training(name: str, folder: Path) -> subprocess.Popen[str]:
    data = folder / f"{name}.json"
    data.write_text(json.dumps([{"instruction": lesson, "output": SENTENCES[name]} for lesson in _LESSONS]))
    python = str(ROOT / "var" / "engine" / "bin" / "python")
    words = ["--base", str(MODEL), "--data", str(data), "--out", str(folder / name), *_TRAINING]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [python, "-m", "adapters.train", *words], cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def variant(adapter: Path, number: int, out: Path) -> Path:
    """The adapter with other files and the same answers: the last bit of one weight differs, another one for each
    number; none for 0."""
    out.mkdir(parents=True)
    for name in _FILES:
        shutil.copyfile(adapter / name, out / name)
    if number:
        with (out / _FILES[1]).open("r+b") as weights:
            weights.seek(-4 * number, io.SEEK_END)
            lowest = weights.read(1)[0]
            weights.seek(-4 * number, io.SEEK_END)
            weights.write(bytes([lowest ^ 1]))
    return out


def packed(folder: Path) -> bytes:
    """The adapter as an archive for the upload."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in _FILES:
            tar.add(folder / name, name)
    return archive.getvalue()
