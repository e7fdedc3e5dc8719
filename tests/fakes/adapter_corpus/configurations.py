"""Hostile configurations."""

from adapters import Code
from tests.fakes.adapter_corpus.case import Area
from tests.fakes.adapter_corpus.craft import CONFIG

AREA = Area("Hostile configurations")
configured = AREA.configured
filed = AREA.filed

_NO_NEED = "no adapter needs the field: another program could run code because of it"
_ENGINE_FIELD = "no adapter needs the field: it is one of vLLM's own, which another version may take from here"
_HANGS = "peft and vLLM match it with a matcher that such an expression can stop for ever"

configured(
    "auto_map", "auto_map names a class to load", Code.REMOTE_CODE, engine="serves", stricter=_NO_NEED,
    auto_map={"AutoModel": "evil.Model"},
)  # fmt: skip
configured(
    "trust_remote_code", "trust_remote_code is true", Code.REMOTE_CODE, engine="serves", stricter=_NO_NEED,
    trust_remote_code=True,
)  # fmt: skip
configured(
    "field_of_the_engine", "vllm_lora_scaling_factor", Code.REMOTE_CODE, engine="serves", stricter=_ENGINE_FIELD,
    vllm_lora_scaling_factor=100.0,
)  # fmt: skip
configured(
    "internal_field", "a field that ends in _internal", Code.REMOTE_CODE, engine="serves", stricter=_ENGINE_FIELD,
    is_target_internal=True,
)  # fmt: skip
configured(
    "rank_pattern_that_hangs", "a key of rank_pattern with nested repetitions", Code.PATTERN, engine="serves",
    stricter=_HANGS, rank_pattern={"((a|aa)+)+x": 8},
)  # fmt: skip
configured(
    "alpha_pattern_that_hangs", "a key of alpha_pattern with six repetitions", Code.PATTERN, engine="serves",
    stricter=_HANGS, alpha_pattern={".*.*.*.*.*.*x": 8},
)  # fmt: skip
configured(
    "target_modules_that_hang", "target_modules repeats what repeats", Code.PATTERN, engine="misserves",
    target_modules="(.*a)+(.*a)+$",
)  # fmt: skip
configured("use_dora_as_text", 'use_dora is "no"', Code.FIELD, engine="refuses", use_dora="no")
configured("bias_as_number", "bias is 1", Code.FIELD, engine="refuses", bias=1)

_PLAIN = (
    b'{"peft_type": "LORA", "r": 8, "lora_alpha": 16, '
    b'"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]'
)
filed("config_not_json", "{r: 8}", Code.CONFIG, engine="refuses", files={CONFIG: b"{r: 8}"})
filed("config_empty", "an empty file", Code.CONFIG, engine="refuses", files={CONFIG: b""})
filed("config_a_list", "[]", Code.CONFIG, engine="refuses", files={CONFIG: b"[]"})
filed(
    "config_of_two_ranks", "r stands twice, as 8 and as 4", Code.CONFIG, engine="misserves",
    files={CONFIG: _PLAIN + b', "r": 4}'},
)  # fmt: skip
filed(
    "config_alpha_nan", "lora_alpha is NaN", Code.CONFIG, engine="misserves",
    files={CONFIG: _PLAIN.replace(b"16", b"NaN") + b"}"},
)  # fmt: skip
filed(
    "config_alpha_overflowing", "lora_alpha is 1e999", Code.SCALE, engine="misserves",
    files={CONFIG: _PLAIN.replace(b"16", b"1e999") + b"}"},
)  # fmt: skip
filed(
    "config_deep", "100,000 lists in each other", Code.CONFIG, engine="refuses",
    files={CONFIG: _PLAIN + b', "x": ' + b"[" * 100_000},
)  # fmt: skip
filed(
    "config_huge", "1 MB of blanks", Code.TOO_LARGE, engine="serves", stricter="nothing that is read has no bound",
    files={CONFIG: _PLAIN + b"}" + b" " * (1 << 20)},
)  # fmt: skip
filed(
    "config_with_mark", "a byte order mark", Code.CONFIG, engine="refuses",
    files={CONFIG: b"\xef\xbb\xbf" + _PLAIN + b"}"},
)  # fmt: skip
filed(
    "config_not_utf8", "bytes that are not UTF-8", Code.CONFIG, engine="refuses",
    files={CONFIG: _PLAIN.replace(b"LORA", b"\xff") + b"}"},
)  # fmt: skip
