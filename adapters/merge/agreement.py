"""Does the merged model answer as the base model does with its adapter? Their logits say so.

Both go through transformers in the merged model's dtype, one after the other, over the same texts: a few questions in
the model's chat template, each followed by what base and adapter answer greedily. In float32 the two are equal but for
the order of sums. In bfloat16 each weight was rounded once, to 8 bits, and that shows: logits differ by some of their
own rounding steps, and where two tokens are nearly equal the other may win.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from adapters.merge import whole

PROMPTS = (
    "What is the capital of Italy?",
    "Write one sentence about the sea.",
    "How do I boil an egg?",
    "What is 7 times 8?",
)
ANSWER = 16  # tokens of each answer that are compared
_MAX_POSITIONS = 256  # of each text, from its end

ARGMAX = 0.95
"""The share of positions at which both must prefer the same token."""
EXACT = 1e-3
"""How far two logits may be apart in float32."""
_STEPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
_MEAN_STEPS, _MAX_STEPS = 2, 16
# Rounding steps, of the largest logit, that they may be apart: on average, at most. A right merge of a model of 30
# layers measures 0.9 and 7; a scale that is wrong by a tenth, or a projection left out, 2.4 and 18.


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the logits are apart. `scale` is the largest of them; `argmax` the share of positions with one winner.

    Positions count as won by one token, too, where what the merged model prefers is behind by less than a rounding
    step in the other: then there is no winner to keep.
    """

    dtype: str
    prompts: int
    positions: int
    max: float
    mean: float
    scale: float
    argmax: float

    @property
    def allowed_max(self) -> float:
        step = _STEPS.get(self.dtype)
        return EXACT if step is None else _MAX_STEPS * step * self.scale

    @property
    def allowed_mean(self) -> float:
        step = _STEPS.get(self.dtype)
        return EXACT if step is None else _MEAN_STEPS * step * self.scale

    @property
    def ok(self) -> bool:
        """False for NaN, too."""
        return self.max <= self.allowed_max and self.mean <= self.allowed_mean and self.argmax >= ARGMAX

    def as_json(self) -> Mapping[str, object]:
        return {
            **asdict(self),
            "ok": self.ok,
            "allowed": {"max": self.allowed_max, "mean": self.allowed_mean, "argmax": ARGMAX},
        }


def tokenised(folder: Path, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    """The prompts as the model in `folder` is asked them: in its chat template, where it has one."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [_tokens(tokenizer, prompt) for prompt in prompts]


def compare(
    base: Path,
    adapters: Sequence[Path],
    merged: Path,
    dtype: str,
    texts: Sequence[Sequence[int]],
    on_text: Callable[[], None],
) -> Agreement:
    """`on_text` is called twice for each text. Raises MergeError where peft does not take an adapter."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = whole.adapted(whole.merged(whole.load(base, dtype, device), adapters[:-1]), adapters[-1])
    expected: list[tuple[Any, Any]] = []
    for text in texts:
        whole_text = _answered(model, torch.tensor([[*text]], device=device))
        expected.append((whole_text, _logits(model, whole_text)))
        on_text()
    del model
    gc.collect()
    model = whole.load(merged, dtype, device)
    found = []
    for text, _ in expected:
        found.append(_logits(model, text))
        on_text()
    return _agreement(dtype, [logits for _, logits in expected], found)


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    if tokenizer.chat_template:
        asked = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    tokens: list[int] = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return tokens


def _answered(model: Any, text: Any) -> Any:
    """The text with the beginning of its greedy answer."""
    step, cache = text, None
    with torch.inference_mode():
        for _ in range(ANSWER):
            output = model(input_ids=step, past_key_values=cache, use_cache=True)
            step, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
            text = torch.cat([text, step], dim=1)
    return text


def _logits(model: Any, text: Any) -> Any:
    with torch.inference_mode():
        return model(input_ids=text, use_cache=False).logits[0, -_MAX_POSITIONS:].float().cpu()


def _agreement(dtype: str, expected: Sequence[Any], found: Sequence[Any]) -> Agreement:
    positions, agreeing, largest, total, count, scale = 0, 0, 0.0, 0.0, 0, 0.0
    step = _STEPS.get(dtype, 0.0)
    for one, other in zip(expected, found, strict=True):
        apart = (one - other).abs()
        best = one.max(-1).values
        chosen = one.gather(-1, other.argmax(-1, keepdim=True)).squeeze(-1)
        agreeing += int((best - chosen <= step * best.abs()).sum())
        positions += one.shape[0]
        largest = max(largest, float(apart.max())) if not bool(apart.isnan().any()) else float("nan")
        total += float(apart.sum(dtype=torch.float64))
        count += apart.numel()
        scale = max(scale, float(one.abs().max()))
    return Agreement(dtype, len(expected), positions, largest, total / count, scale, agreeing / positions)
