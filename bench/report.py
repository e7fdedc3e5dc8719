"""From readings to what is printed: medians, ratios and the floors. Pure, but for the machine's description."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from exact import Alterations
from measure import REQUESTS_1, REQUESTS_64, STREAMS_1, STREAMS_64, STREAMS_256, Reading, Workload

# Of LiteLLM's CPU time, the gateway may take at most this part.
FLOOR_PER_REQUEST = 1 / 25
FLOOR_PER_CHUNK = 1 / 6


@dataclass(frozen=True)
class Outcome:
    """All that was found out about one target. `readings`: one a round, for each workload that it survived."""

    name: str
    start_seconds: float
    resident_mib: float
    alterations: Alterations | None
    readings: Mapping[Workload, Sequence[Reading]]

    def median(self, workload: Workload, figure: Callable[[Reading], float]) -> float | None:
        readings = self.readings.get(workload)
        return statistics.median(figure(reading) for reading in readings) if readings else None

    @property
    def answers(self) -> int:
        return sum(reading.answers for readings in self.readings.values() for reading in readings)

    @property
    def altered_answers(self) -> int:
        return sum(reading.altered for readings in self.readings.values() for reading in readings)

    @property
    def exact(self) -> bool:
        return not self.altered_answers and not (self.alterations and self.alterations.altered)


@dataclass(frozen=True)
class Floor:
    """A promise on the gateway's CPU: at most `limit` of LiteLLM's. `share` is None where one was not measured."""

    subject: str
    limit: float
    share: float | None

    def __str__(self) -> str:
        bound = f"{self.subject}: at most 1/{1 / self.limit:.0f} of LiteLLM's"
        if self.share is None:
            return f"not measured  {bound} (needs the targets gateway and litellm)"
        return f"{'PASS' if self.share <= self.limit else 'FAIL'}  {bound}; it is 1/{1 / self.share:.1f}"


def cpu_per_request(reading: Reading) -> float:
    return reading.cpu_ms_per_request


def cpu_per_chunk(reading: Reading) -> float:
    return reading.cpu_us_per_chunk


@dataclass(frozen=True)
class Column:
    title: str
    workload: Workload
    figure: Callable[[Reading], float]
    digits: int


COST = (
    Column("requests/s per core, c=64", REQUESTS_64, lambda reading: reading.requests_per_core_second, 0),
    Column("CPU ms/request, c=1", REQUESTS_1, cpu_per_request, 3),
    Column("CPU ms/request, c=64", REQUESTS_64, cpu_per_request, 3),
    Column("CPU µs/chunk, c=64", STREAMS_64, cpu_per_chunk, 0),
    Column("CPU µs/chunk, c=256", STREAMS_256, cpu_per_chunk, 0),
)
DELAY = tuple(
    Column(title, workload, figure, 2)
    for workload in (STREAMS_1, STREAMS_64, STREAMS_256)
    for title, figure in (
        (f"p50, c={workload.connections}", lambda reading: reading.first_byte_p50),
        (f"p99, c={workload.connections}", lambda reading: reading.first_byte_p99),
    )
)

_COMPARED = (
    ("litellm", "gateway"), ("gateway", "nginx"), ("gateway", "bare"), ("accounts", "gateway"), ("crowded", "accounts"),
)  # fmt: skip


def report(outcomes: Sequence[Outcome], rounds: int) -> str:
    """The tables, as Markdown."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    compared = ratios(by_name)
    parts = [
        f"{machine()}; {rounds} interleaved round{'s' if rounds > 1 else ''}, medians",
        f"CPU of the target's whole process tree\n\n{costs(outcomes)}",
        *([f"The same as ratios\n\n{compared}"] if compared else []),
        f"Time to first byte of a stream, ms: the upstream's own, and what a target adds\n\n{delays(by_name)}",
        f"Bytes altered: payload of JSON answers and of streams, beside the upstream's\n\n{altered(outcomes)}",
        "\n".join(str(floor) for floor in floors(by_name)),
    ]
    return "\n\n".join(parts)


def costs(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [
            outcome.name,
            *(number(outcome.median(column.workload, column.figure), column.digits) for column in COST),
            number(outcome.resident_mib, 0),
            number(outcome.start_seconds, 1),
        ]
        for outcome in outcomes
    ]
    return table(["target", *(column.title for column in COST), "MiB at rest", "start s"], rows)


def ratios(outcomes: Mapping[str, Outcome]) -> str:
    """Empty where no two targets are worth comparing."""
    rows = [
        [f"{over} ÷ {under}", *(ratio(outcomes[over], outcomes[under], column) for column in COST[1:])]
        for over, under in _COMPARED
        if over in outcomes and under in outcomes
    ]
    return table(["", *(column.title for column in COST[1:])], rows) if rows else ""


def delays(outcomes: Mapping[str, Outcome]) -> str:
    bare = outcomes.get("bare")
    rows = [[outcome.name, *(delay(outcome, bare, column) for column in DELAY)] for outcome in outcomes.values()]
    return table(["target", *(column.title for column in DELAY)], rows)


def altered(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [
            outcome.name,
            f"{outcome.alterations.altered} of {outcome.alterations.lines}" if outcome.alterations else "–",
            f"{outcome.alterations.bytes:,}" if outcome.alterations else "–",
            f"{outcome.altered_answers:,} of {outcome.answers:,}",
        ]
        for outcome in outcomes
    ]
    return table(["target", "lines", "bytes", "answers under load"], rows)


def floors(outcomes: Mapping[str, Outcome]) -> list[Floor]:
    """The gateway's CPU beside LiteLLM's, at 64 connections."""

    def share(workload: Workload, figure: Callable[[Reading], float]) -> float | None:
        medians = [outcomes[name].median(workload, figure) for name in ("gateway", "litellm") if name in outcomes]
        if len(medians) < 2 or medians[0] is None or not medians[1]:
            return None
        return medians[0] / medians[1]

    return [
        Floor("CPU per request, c=64", FLOOR_PER_REQUEST, share(REQUESTS_64, cpu_per_request)),
        Floor("CPU per paced chunk, c=64", FLOOR_PER_CHUNK, share(STREAMS_64, cpu_per_chunk)),
    ]


def delay(outcome: Outcome, bare: Outcome | None, column: Column) -> str:
    own = outcome.median(column.workload, column.figure)
    base = bare.median(column.workload, column.figure) if bare else None
    if own is None or base is None:
        return "–"
    return number(own, column.digits) if outcome is bare else f"+{max(0.0, own - base):.{column.digits}f}"


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def ratio(over: Outcome, under: Outcome, column: Column) -> str:
    above, below = over.median(column.workload, column.figure), under.median(column.workload, column.figure)
    if above is None or not below:
        return "–"
    share = above / below
    return f"{share:.2f}" if share < 2 else f"{share:.1f}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too: the first to the left, figures to the right."""
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(titles), f"|{rule}|", *(line(row) for row in rows)])


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
