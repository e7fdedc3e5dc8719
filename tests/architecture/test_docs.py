"""The documents say what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from gateway.api.routes import RULES
from gateway.cli import app
from gateway.domain.errors import Reason
from gateway.telemetry.metrics import Metrics, Occupancy

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_every_metric_is_documented_with_its_labels_and_nothing_else_is():
    metrics = Metrics()
    metrics.watch(lambda: [Occupancy("up", 0, 0, {})])
    real = {}
    for collector in list(metrics.registry._collector_to_names):
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", None)
            labels = family._labelnames if labels is None else labels
            real[family.name] = (family.type, ", ".join(labels))
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \|(?: ([\w, ]+))? \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )
    assert {name: (kind, labels) for name, kind, labels in rows} == real


def test_every_way_that_a_request_can_end_is_documented():
    text = (ROOT / "docs/metrics.md").read_text()
    assert {reason.value for reason in Reason} <= set(re.findall(r"`(\w+)`", text))


def test_every_route_is_documented():
    text = (ROOT / "docs/api.md").read_text()
    for rule in RULES:
        if rule.path != "/v1/tokenize":  # an alias
            assert rule.path in text, rule.path


def test_every_command_that_is_mentioned_exists():
    command = get_command(app)
    known = set()
    for name, sub in command.commands.items():
        known.add(name)
        known |= {f"{name} {inner}" for inner in getattr(sub, "commands", {})}
    for page in PAGES:
        for first, second in re.findall(r"`gateway ([a-z]+)(?: ([a-z]+))?", page.read_text()):
            assert first in known, (page.name, first)
            if any(name.startswith(f"{first} ") for name in known):
                assert f"{first} {second}" in known, (page.name, first, second)


def test_every_make_target_that_is_mentioned_exists():
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z0-9]+)`", page.read_text()):
            assert target in targets, (page.name, target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not re.match(r"[a-z]+:", link):
            assert (page.parent / link).exists(), link
