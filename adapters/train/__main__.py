"""The command: reads the arguments, shows the progress, writes the adapter."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.data.formats import DataError, load
from adapters.identity import digests
from adapters.train.encode import encode
from adapters.train.lora import Settings, train
from adapters.train.publish import publish


def arguments(words: list[str]) -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m adapters.train", description="Trains a LoRA adapter with peft.")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model, in the Hugging Face layout")
    parser.add_argument("--data", type=Path, required=True, help="alpaca or sharegpt file, .json or .jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter; replaced if it is there")
    parser.add_argument("--base-name", help="what the adapter calls its base model; default: the name of its folder")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch, help="examples a step")
    parser.add_argument("--rank", type=int, default=defaults.rank)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--max-tokens", type=int, default=1024, help="of one example; a longer one is an error")
    parser.add_argument("--ask", help="a question to put to the trained model; its answer is printed")
    return parser.parse_args(words)


def progress(total: int) -> Callable[[int, float], None]:
    """A bar on a terminal, `7/12 loss 1.42` a line elsewhere."""
    if not sys.stdout.isatty():
        return lambda step, loss: print(f"{step}/{total} loss {loss:.2f}", flush=True)  # noqa: T201
    shown = tqdm(total=total, unit="step", file=sys.stdout)

    def on_step(step: int, loss: float) -> None:
        shown.set_postfix_str(f"loss {loss:.2f}", refresh=False)
        shown.update(step - shown.n)
        if step == total:
            shown.close()

    return on_step


def precision(device: str) -> torch.dtype:
    """What to compute in.  A processor without instructions for bfloat16 takes more than twice as long with it."""
    if device == "cuda":
        return torch.bfloat16
    flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    has_bfloat16 = bool(flags) and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[0].split())
    return torch.bfloat16 if has_bfloat16 else torch.float32


def main(words: list[str]) -> int:
    options = arguments(words)
    settings = Settings(
        steps=options.steps,
        batch=options.batch,
        rank=options.rank,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    try:
        rows = load(options.data)
        tokenizer = AutoTokenizer.from_pretrained(options.base)
        examples = [example for row in rows for example in encode(tokenizer, row, options.max_tokens)]
    except DataError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=precision(device)).to(device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    adapted = train(model, examples, pad, settings, progress(settings.steps))
    publish(adapted, options.out, options.base_name or options.base.resolve().name, digests(options.base))
    if options.ask:
        adapted.eval()
        question = [{"role": "user", "content": options.ask}]
        inputs = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(device)
        output = adapted.generate(**inputs, max_new_tokens=48, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        print(f"{options.ask} → {tokenizer.decode(output, skip_special_tokens=True)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
