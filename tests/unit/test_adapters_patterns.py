"""Keys of rank_pattern match what peft and vLLM match with them, and cannot hang whoever does."""

import re

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from adapters.patterns import UnsupportedPatternError, explodes, parse

NAMES = [
    f"model.layers.{i}.{module}"
    for i in (0, 1, 2, 10, 11)
    for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.experts.3.w-1")
] + ["q_proj", "lm_head", "xq_proj", "model.layersX1Xmlp.up_proj"]


def peft(key: str, name: str) -> bool:
    """peft's get_pattern_key, and vLLM's _match_pattern."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


@pytest.mark.parametrize(
    "key",
    [
        "q_proj",
        "^q_proj",
        "self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        r"model\.layers\.\d+\.self_attn\.q_proj",
        r"^model\.layers\.(0|1|10)\.self_attn\.(?:q_proj|k_proj)$",
        ".*q_proj",
        r"layers\.1?1\.mlp.*",
        "[^.]+_proj",
        r"layers\.[0-1]\.[\w.]+",
        "w-1",
        "",
    ],
)
def test_a_key_matches_what_peft_matches_with_it(key: str) -> None:
    pattern = parse(key)
    assert [name for name in NAMES if pattern.matches(name)] == [name for name in NAMES if peft(key, name)]


@settings(max_examples=500, deadline=None)
@given(st.text("ab.1_\\d[]^-()|*+?$", max_size=8), st.lists(st.text("ab.1_-d", max_size=7), max_size=8))
def test_any_key_matches_as_in_peft_or_is_not_taken(key: str, names: list[str]) -> None:
    try:
        pattern = parse(key)
    except UnsupportedPatternError:
        reject()
    assert all(pattern.matches(name) == peft(key, name) for name in names)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+",
        "(a|a)*",
        ".*.*.*",
        "a?a?a?",
        "(a|b)(a|b)(a|b)",
        r"(a)\1",
        "(?=a)",
        "a{2,9}",
        "a**",
        "x" * 300,
        "[z-a]",
        "(",
    ],
)
def test_a_key_that_could_hang_a_matcher_or_means_something_else_is_not_taken(key: str) -> None:
    with pytest.raises(UnsupportedPatternError):
        parse(key)


def test_the_costliest_key_that_is_taken_takes_no_time_on_the_longest_name() -> None:
    """Here, and by the matcher of peft and vLLM on a name as long as real ones are."""
    key = "[^x]*[^x]*(a|ab)(b|ba)c?c?z"
    assert not parse(key).matches("ab." * 80 + "y" + "z")
    assert not peft(key, "model.layers.10.self_attn.block_of_some_kind.q_projyz")


@pytest.mark.parametrize(
    "regex",
    [
        "all-linear",
        r".*\.(q|v)_proj",
        r"^(?!.*patch_embed).*(?:o_proj|q_proj|v_proj).*",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp))",
        r"model\.layers\.(\d+)\.self_attn\.(q|k)_proj",
        r"[(a+)+]",
        r"\(a+\)+",
        "(?P<layer>a+)b",
    ],
)
def test_what_people_write_as_target_modules_does_not_explode(regex: str) -> None:
    assert not explodes(regex)


@pytest.mark.parametrize(
    "regex",
    [
        "(a+)+$",
        "(a*)*",
        "(?:a|aa)+b",
        "((a+)b)*",
        "(a?){30}a{30}",
        "(.*a){20}",
        "((a|b))+",
        "(?:(?:x+))*",
        ".*" * 9,
        "a+)+",
    ],
)
def test_what_explodes_is_known(regex: str) -> None:
    assert explodes(regex)


@given(st.text(max_size=300) | st.text("()[]{}?*+|\\a^!<>=P", max_size=300))
def test_any_text_can_be_judged(regex: str) -> None:
    explodes(regex)
