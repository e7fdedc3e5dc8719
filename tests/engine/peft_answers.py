"""What peft answers with adapters: what was trained, as far as it can be known.  Runs in the engine's environment.

    python -m tests.engine.peft_answers JOB ANSWERS

Both are files of JSON. The job: {"base": FOLDER, "prompts": [[TOKEN, …], …], "adapters": [FOLDER, …],
"variants": FOLDER | null}. Into the folder of `variants` it saves an adapter of each kind that peft knows. The answers,
by the names of the folders, and of the base model under "": {"next": [the probability of each token to follow, …]} or
{"error": TEXT}.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from tests.engine.peft_variants import VARIANTS, randomised

Answer = dict[str, Any]
PREFIX = "base_model.model."


def answer(model: Any, prompts: list[list[int]]) -> Answer:
    model.eval()
    with torch.no_grad():
        logits = [model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    if not all(row.isfinite().all() for row in logits):
        return {"error": "not finite"}
    return {"next": [torch.softmax(row.double(), -1).tolist() for row in logits]}


def loaded(base: Any, folder: Path) -> PeftModel:
    """The adapter on the base model.  ValueError where peft has no place for a tensor, of which it only warns."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if (folder / name).exists() and not (folder / name).is_file():
            raise ValueError(f"{name} is no file")
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    model = get_peft_model(copy.deepcopy(base), config)
    tensors = load_peft_weights(folder, device="cpu")
    named = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}  # some tools leave it out
    if len(named) < len(tensors):
        raise ValueError("one tensor stands twice")
    found = set_peft_model_state_dict(model, named)
    if found.unexpected_keys:
        raise ValueError(f"no place for {found.unexpected_keys[0]}")
    return model


def attempted(base: Any, folder: Path, prompts: list[list[int]]) -> Answer:
    try:
        return answer(loaded(base, folder), prompts)
    except Exception as error:  # noqa: BLE001 - what peft and torch raise for what is wrong has no common kind
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(3)
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    prompts = job["prompts"]
    answers = {"": answer(base, prompts)}
    for folder in map(Path, job["adapters"]):
        answers[folder.name] = attempted(base, folder, prompts)
    if job["variants"] is not None:
        for name, config in VARIANTS.items():
            model = randomised(get_peft_model(copy.deepcopy(base), config))
            answers[name] = answer(model, prompts)
            model.save_pretrained(Path(job["variants"]) / name)
    Path(sys.argv[2]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
