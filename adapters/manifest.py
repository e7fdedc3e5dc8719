"""adapter_config.json, read as what it is: a file from a stranger.

The fields and their meaning are peft's LoraConfig (0.21); which of them an engine understands is judged in `validate`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

from adapters.files import CONFIG, open_file
from adapters.findings import Code, Finding, RefusedError, quote
from adapters.patterns import Pattern, UnsupportedPatternError, explodes, parse
from adapters.strict_json import StrictJsonError, loads

T = TypeVar("T")

# vLLM 0.32's largest --max-lora-rank.
MAX_RANK = 512
# No training uses a scale near this; beyond it the scaled weights leave float16.
MAX_ALPHA = 32768.0
# Keys of rank_pattern or alpha_pattern: a 70B model has 560 modules.
MAX_PATTERNS = 1024
MAX_REGEX = 4096  # characters of target_modules
# Of one file: who reads more?
MAX_FINDINGS = 20

# What a training of ours adds to peft's fields, so that the base model can be told from its siblings.
BASE_DIGESTS = "base_model_digests"

# Fields that no adapter needs and that tell some reader to import code, or that overwrite fields of vLLM's own reader
# (its PEFTHelper takes whatever has the name of one of its fields).
_CODE_FIELDS = ("auto_map", "trust_remote_code", "custom_code")
_ENGINE_PREFIX = "vllm_"
_ENGINE_SUFFIX = "_internal"

# Variants of LoRA that change what the tensors mean or need more than lora_A and lora_B. Set means: not null or empty.
VARIANT_FIELDS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_kasa",
    "use_qalora",
    "velora_config",
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an adapter says of itself, after every field was found to hold what peft writes there."""

    base_model: str | None  # base_model_name_or_path
    r: int
    alpha: float
    rank_pattern: tuple[tuple[Pattern, int], ...]
    alpha_pattern: tuple[tuple[Pattern, float], ...]
    target_modules: tuple[str, ...] | str  # a string is a regular expression, never run here
    exclude_modules: tuple[str, ...] | str  # as target_modules
    target_parameters: tuple[str, ...]
    layers: tuple[int, ...] | None  # layers_to_transform
    layers_pattern: tuple[str, ...]
    use_rslora: bool
    use_dora: bool
    bias: str
    lora_bias: bool
    fan_in_fan_out: bool
    ensure_weight_tying: bool
    modules_to_save: tuple[str, ...]
    init_lora_weights: bool | str
    variants: tuple[str, ...]  # those of VARIANT_FIELDS that are set
    revision: str | None  # of the base model
    base_digests: Mapping[str, str]  # base_model_digests: what `adapters.identity` says of the base model

    def rank(self, module: str) -> int:
        """The declared rank of a module; the first key of rank_pattern that matches decides, as in peft."""
        return next((rank for pattern, rank in self.rank_pattern if pattern.matches(module)), self.r)

    def scale(self, module: str) -> float:
        """What B·A of a module is multiplied by."""
        alpha = next((alpha for pattern, alpha in self.alpha_pattern if pattern.matches(module)), self.alpha)
        return alpha / (sqrt(self.rank(module)) if self.use_rslora else self.rank(module))

    @property
    def max_rank(self) -> int:
        """The rank that vLLM compares with --max-lora-rank: the highest declared, used or not."""
        return max([self.r, *(rank for _, rank in self.rank_pattern)])


def read_manifest(folder: int) -> Manifest:
    """Reads adapter_config.json in the folder behind the descriptor. Raises RefusedError with all that is wrong."""
    with open_file(folder, CONFIG) as file:
        return parse_manifest(file.read())


def parse_manifest(data: bytes) -> Manifest:
    """`data` is the content of an adapter_config.json. Raises RefusedError with all that is wrong."""
    try:
        fields = loads(data)
    except StrictJsonError as error:
        raise RefusedError(
            Finding(Code.CONFIG, f"{CONFIG} is no valid JSON ({error})", "export the adapter again with peft")
        ) from error
    if not isinstance(fields, dict):
        raise RefusedError(Finding(Code.CONFIG, f"{CONFIG} is not a JSON object", "export the adapter again with peft"))
    reader = _Reader(fields)
    reader.refuse_code()
    peft_type = fields.get("peft_type", "LORA")
    if peft_type != "LORA":
        reader.refuse(
            Code.PEFT_TYPE,
            f"peft_type is {quote(peft_type)}, not LORA: vLLM would ignore that and serve something else",
            "train a LoRA, or merge this adapter into the base model",
        )
        raise RefusedError(*reader.findings)
    manifest = _manifest(reader)
    if reader.findings:
        raise RefusedError(*reader.findings)
    return manifest


def _manifest(reader: "_Reader") -> Manifest:
    flag = reader.flag
    return Manifest(
        base_model=reader.text("base_model_name_or_path"),
        r=reader.rank("r", reader.required("r", 1)),
        alpha=reader.alpha("lora_alpha", reader.required("lora_alpha", 1)),
        rank_pattern=reader.patterns("rank_pattern", reader.rank),
        alpha_pattern=reader.patterns("alpha_pattern", reader.alpha),
        target_modules=reader.names_or_regex("target_modules", reader.required("target_modules", None)),
        exclude_modules=reader.names_or_regex("exclude_modules", reader.fields.get("exclude_modules")),
        target_parameters=reader.names("target_parameters"),
        layers=reader.numbers("layers_to_transform"),
        layers_pattern=reader.name_or_names("layers_pattern"),
        use_rslora=flag("use_rslora"),
        use_dora=flag("use_dora"),
        bias=reader.text("bias") or "none",
        lora_bias=flag("lora_bias"),
        fan_in_fan_out=flag("fan_in_fan_out"),
        ensure_weight_tying=flag("ensure_weight_tying"),
        modules_to_save=reader.names("modules_to_save"),
        init_lora_weights=reader.flag_or_text("init_lora_weights"),
        variants=tuple(name for name in VARIANT_FIELDS if reader.fields.get(name)),
        revision=reader.text("revision"),
        base_digests=reader.texts(BASE_DIGESTS),
    )


class _Reader:
    """Takes fields out of a configuration and collects what is wrong with them, so that one look shows all of it.

    Where a field is wrong a harmless value stands in; the findings keep it from being used.
    """

    def __init__(self, fields: Mapping[str, object]) -> None:
        self.fields = fields
        self.findings: list[Finding] = []

    def refuse(self, code: Code, message: str, remedy: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(code, message, remedy))

    def refuse_code(self) -> None:
        for name in self.fields:
            asks_for_code = name in _CODE_FIELDS and self.fields[name] not in (None, False)
            if asks_for_code or name.startswith(_ENGINE_PREFIX) or name.endswith(_ENGINE_SUFFIX):
                self.refuse(
                    Code.REMOTE_CODE,
                    f"{CONFIG} has the field {quote(name)}, which loads code or reaches into the engine",
                    "no LoRA needs it: remove it, or do not trust this adapter",
                )

    def required(self, name: str, default: object) -> object:
        if name not in self.fields:
            self.refuse(Code.FIELD, f"{CONFIG} has no field {name!r}", "export the adapter again with peft")
            return default
        return self.fields[name]

    def rank(self, name: str, value: object) -> int:
        if type(value) is not int:
            self._mistyped(name, value, "a whole number")
        elif not 1 <= value <= MAX_RANK:
            self.refuse(
                Code.RANK,
                f"{name} is {quote(value)}, and vLLM serves ranks from 1 to {MAX_RANK}",
                "train with a smaller rank, or merge the adapter into the base model",
            )
        else:
            return value
        return 1

    def alpha(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._mistyped(name, value, "a number")
        elif not abs(value) <= MAX_ALPHA:
            self.refuse(
                Code.SCALE,
                f"{name} is {quote(value)}, beyond {MAX_ALPHA:g}: the scaled weights would be infinite",
                "export the adapter again; alpha is commonly one or two times the rank",
            )
        else:
            return float(value)
        return 1.0

    def patterns(self, name: str, read: Callable[[str, object], T]) -> tuple[tuple[Pattern, T], ...]:
        value = self.fields.get(name)
        if value is None:
            return ()
        if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
            self._mistyped(name, value, f"an object of at most {MAX_PATTERNS} entries")
            return ()
        return tuple(
            (pattern, read(f"{name}[{quote(key)}]", entry))
            for key, entry in value.items()
            if (pattern := self._pattern(name, key))
        )

    def _pattern(self, name: str, key: str) -> Pattern | None:
        try:
            return parse(key)
        except UnsupportedPatternError as error:
            self.refuse(
                Code.PATTERN,
                f"{name} has the key {quote(key)}: {error}",
                "write the modules' names out, such as model.layers.0.self_attn.q_proj",
            )
            return None

    def flag(self, name: str) -> bool:
        value = self.fields.get(name)
        if not isinstance(value, bool | None):
            self._mistyped(name, value, "true or false")
        return value is True

    def text(self, name: str) -> str | None:
        value = self.fields.get(name)
        if isinstance(value, str | None):
            return value
        self._mistyped(name, value, "a text")
        return None

    def flag_or_text(self, name: str) -> bool | str:
        value = self.fields.get(name, True)
        if isinstance(value, bool | str):
            return value
        if value is not None:
            self._mistyped(name, value, "true, false or a text")
        return True

    def names(self, name: str) -> tuple[str, ...]:
        value = self.fields.get(name)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        self._mistyped(name, value, "a list of names")
        return ()

    def name_or_names(self, name: str) -> tuple[str, ...]:
        value = self.fields.get(name)
        return (value,) if isinstance(value, str) and value else self.names(name) if value else ()

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """A whole number, or a list of them; none at all is as if the field were not there, as in peft."""
        value = self.fields.get(name)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        if all(type(entry) is int for entry in entries):
            return tuple(entries) or None
        self._mistyped(name, value, "a whole number or a list of them")
        return None

    def texts(self, name: str) -> Mapping[str, str]:
        value = self.fields.get(name)
        if value is None:
            return {}
        if isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values()):
            return value
        self._mistyped(name, value, "an object of texts")
        return {}

    def names_or_regex(self, name: str, value: object) -> tuple[str, ...] | str:
        if not isinstance(value, str):
            return self.names(name)
        if len(value) > MAX_REGEX or explodes(value):
            self.refuse(
                Code.PATTERN,
                f"{name} is a regular expression that could take for ever to match: {quote(value)}",
                "list the modules' names instead",
            )
        return value

    def _mistyped(self, name: str, value: object, expected: str) -> None:
        self.refuse(Code.FIELD, f"{name} is {quote(value)}, not {expected}", "export the adapter again with peft")
