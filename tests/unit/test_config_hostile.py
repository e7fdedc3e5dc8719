"""Whatever is in a configuration file, loading it ends in a configuration or in a ConfigError, never in a traceback."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.controlplane.config import Config
from gateway.controlplane.loader import ConfigError, from_mapping, load
from tests.unit.test_config_mistakes import ENVIRON, RIGHT, TREE

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.sampled_from(["*", "${", "10m", "http://a/v1"])
)
KEYS = st.sampled_from(["name", "kind", "key", "model", "engine", "base_url", "args", "targets"]) | st.text(max_size=5)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(tree: Any, loc: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [loc, *(place for key, value in entries for place in places(value, (*loc, key)))]


PLACES = [place for place in places(TREE) if place]


def outcome(build: Callable[[], Config]) -> str:
    """What people are told, "right" where nothing is wrong.  Any other exception fails the test."""
    try:
        build()
    except ConfigError as error:
        return str(error)
    return "right"


@quick
@given(place=st.sampled_from(PLACES), value=TREES)
def test_any_value_in_any_place(place: tuple[Any, ...], value: Any) -> None:
    tree = copy.deepcopy(TREE)
    section = tree
    for part in place[:-1]:
        section = section[part]
    section[place[-1]] = value
    assert outcome(lambda: from_mapping(tree))


@quick
@given(
    cut=st.integers(0, len(RIGHT)),
    junk=st.binary(max_size=12) | st.sampled_from([b'"\\U0011FFFF"', b'"\\UFFFFFFFF"', b"&a", b"? "]),
)
def test_any_bytes_in_any_place(cut: int, junk: bytes, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_bytes(RIGHT[:cut].encode() + junk + RIGHT[cut:].encode())
    assert outcome(lambda: load(file, ENVIRON))


@pytest.mark.parametrize(
    "data",
    [b'a: "\\UFFFFFFFF"', b'a: "\\ud800"', b"a: 1e999", b"a: " + b"9" * 5000, b"? [a]\n: b", b"%YAML 9.9\n---\na: b"],
)
def test_what_the_parser_stumbles_over(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_bytes(data)
    with pytest.raises(ConfigError):
        load(tmp_path / "gateway.yaml", {})
