"""The training itself: a plain loop over peft's LoRA, on one device, the same every time for the same seed."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.optim.lr_scheduler import LambdaLR

from adapters.train.encode import NOT_LEARNED, Example


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. The defaults show a clear effect on a model of 135M parameters in half a minute on one core."""

    steps: int = 20
    batch: int = 4
    """Examples a step."""
    rank: int = 8
    learning_rate: float = 2e-3
    """Its peak; models of a billion parameters want a tenth of it."""
    warmup: int = 3
    """Steps in which the learning rate climbs; after them it falls in a line to zero."""
    seed: int = 7


def train(
    model: Any,
    examples: Sequence[Example],
    pad: int,
    settings: Settings,
    on_step: Callable[[int, float], None],
) -> PeftModel:
    """Puts adapters on every linear layer of `model` and trains them; `on_step` gets the step's number and loss.

    `model` is a transformers model for causal language; it is computed in its dtype, float32 or bfloat16.  `pad` is the
    token that fills short examples.
    """
    torch.manual_seed(settings.seed)
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=2 * settings.rank,
            target_modules="all-linear",  # a tiny model learns little from attention alone
        ),
    )
    adapted.train()
    learned = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda done: _rate(done, settings))
    batches = _batches(examples, settings)
    device, dtype = model.device, model.dtype
    for number in range(1, settings.steps + 1):
        batch = _tensors(next(batches), pad, device)
        # One context for each forward pass: autocast caches its casts of the adapter's weights until it is left, so a
        # context around the loop would go on using the weights of the first step.
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = adapted(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        on_step(number, loss.item())
    return adapted


def _rate(done: int, settings: Settings) -> float:
    """The share of the peak learning rate after `done` steps."""
    if done < settings.warmup:
        return (done + 1) / (settings.warmup + 1)
    return max(0.0, (settings.steps - done) / max(1, settings.steps - settings.warmup))


def _batches(examples: Sequence[Example], settings: Settings) -> Iterator[list[Example]]:
    """Batches without end, each pass over the examples in another order."""
    order = random.Random(settings.seed)  # noqa: S311 - not for secrets
    queue: list[Example] = []
    for _ in count():
        while len(queue) < settings.batch:
            queue += order.sample(examples, len(examples))
        yield queue[: settings.batch]
        del queue[: settings.batch]


def _tensors(batch: Sequence[Example], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    width = max(len(example.tokens) for example in batch)
    filled = [(example, width - len(example.tokens)) for example in batch]
    rows = {
        "input_ids": [[*example.tokens, *[pad] * missing] for example, missing in filled],
        "attention_mask": [[1] * len(example.tokens) + [0] * missing for example, missing in filled],
        "labels": [[*example.labels, *[NOT_LEARNED] * missing] for example, missing in filled],
    }
    return {name: torch.tensor(values, device=device) for name, values in rows.items()}
