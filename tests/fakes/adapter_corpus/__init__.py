"""Crafted LoRA adapters, right and wrong, each with the verdict it deserves and what vLLM 0.32 does with it.

Each case starts from a plain adapter for a Llama-like base model of given dimensions and changes one thing. Needs numpy
and nothing else, so that the same adapters can be laid before the check, and before a real engine.
"""

from tests.fakes.adapter_corpus import (
    configurations,
    fit,
    folders,
    identities,
    kinds,
    ranks,
    right,
    tokenizers,
    weights,
)
from tests.fakes.adapter_corpus.case import Case
from tests.fakes.adapter_corpus.craft import (
    SMOLLM2,
    TINY,
    Craft,
    Dimensions,
    as_bytes,
    factor,
    safetensors,
    with_header,
    write_base,
)

AREAS = [module.AREA for module in (right, identities, tokenizers, kinds, ranks, fit, weights, configurations, folders)]
CASES: list[Case] = [case for area in AREAS for case in area.cases]

__all__ = [
    "AREAS",
    "CASES",
    "SMOLLM2",
    "TINY",
    "Case",
    "Craft",
    "Dimensions",
    "as_bytes",
    "factor",
    "safetensors",
    "with_header",
    "write_base",
]
