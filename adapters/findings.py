"""What can be wrong with an adapter: stable codes, and findings that say what is wrong and what to do about it."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Severity = Literal["error", "warning"]


class Code(StrEnum):
    """Why an adapter is refused or doubted. Programs match on these: a code may be added, none changes its meaning."""

    # the folder and its files
    FOLDER = "folder"  # not a folder, or it cannot be read
    NAME = "name"  # the folder's name is no adapter name
    CONFIG_MISSING = "config_missing"
    WEIGHTS_MISSING = "weights_missing"
    PICKLE = "pickle"  # the only weights are a pickle
    LINK = "link"  # a file of the adapter is a symbolic link
    FILE = "file"  # a file of the adapter cannot be read, or is a device, a pipe, a folder
    TOO_LARGE = "too_large"
    ARCHIVE = "archive"  # an archive that is damaged, or holds what no archive of an adapter holds
    DIGEST = "digest"  # what was fetched is not what was asked for
    # adapter_config.json
    CONFIG = "config"  # not one JSON object of sane size and depth
    FIELD = "field"  # a field is missing or holds what it cannot hold
    REMOTE_CODE = "remote_code"  # a field that asks for code to be loaded, or reaches into the engine
    RANK = "rank"  # no rank an engine can serve
    SCALE = "scale"  # alpha / rank is no number weights can be scaled by
    PATTERN = "pattern"  # a key of rank_pattern or alpha_pattern that an engine must not be made to match
    # a kind of adapter that vLLM refuses, or takes and serves as something else
    PEFT_TYPE = "peft_type"
    DORA = "dora"
    BIAS = "bias"
    MODULES_TO_SAVE = "modules_to_save"
    INIT = "init"  # initialised by changing the base model's weights
    VARIANT = "variant"
    # adapter_model.safetensors
    HEADER = "header"
    TENSOR_NAME = "tensor_name"
    UNPAIRED = "unpaired"  # lora_A without lora_B, or the other way round
    SHAPE = "shape"
    DTYPE = "dtype"
    RANK_MISMATCH = "rank_mismatch"  # the tensors' rank is not the declared one
    TARGET = "target"  # tensors of modules that the configuration does not name
    NOT_FINITE = "not_finite"
    OVERFLOW = "overflow"  # finite on disk, infinite in float16
    # against the base model and the engine
    RANK_TOO_LARGE = "rank_too_large"
    MODULE = "module"  # the base model has no such module
    VOCABULARY = "vocabulary"  # it was trained with tokens that the base model has no place for
    BASE = "base"  # not the base model that it was trained on, as its digests or its copy of the embeddings show
    TOKENIZER = "tokenizer"  # its tokenizer gives the base model's tokens other numbers
    # warnings
    BASE_NAME = "base_name"
    BASE_REVISION = "base_revision"
    BASE_CONFIG = "base_config"  # the weights it was trained on, with another configuration
    BASE_UNKNOWN = "base_unknown"  # no base model was given: shapes were not compared
    TOKENS = "tokens"  # tokens that the base model's tokenizer does not know
    ENDING = "ending"  # it ends its answers otherwise than the base model
    CHAT_TEMPLATE = "chat_template"
    NO_EFFECT = "no_effect"
    OUTPUT_LAYER = "output_layer"  # served rightly, but for the log probabilities of prompts


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `message` names it and where it is; `remedy` says what to do."""

    code: Code
    message: str
    remedy: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}"


class RefusedError(Exception):
    """An adapter cannot be read further. Carries at least one finding of severity `error`."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("; ".join(map(str, findings)))
        self.findings = findings


def quote(value: object, limit: int = 80) -> str:
    """`value` as JSON in ASCII, cut to `limit` characters: names from a hostile file reach terminals and logs."""
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
