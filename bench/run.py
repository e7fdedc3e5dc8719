"""`make bench`: the gateway beside the bare upstream, nginx and LiteLLM's proxy, in one interleaved run.

What the figures mean and how they are taken: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from exact import Alterations, Unanswered, alterations, ask
from measure import WORKLOADS, Load, LoadFailed, Reading, Workload, resident_mib
from report import Outcome, floors, machine, report
from targets import FOLDER, RECIPES, Broken, LeftOut, Target, compile_c, running

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Mode:
    """How much is measured. Streams run longer than `seconds`: what has begun is read to its end."""

    targets: tuple[str, ...]
    rounds: int
    seconds: Mapping[str, float]


FULL = Mode(
    ("bare", "nginx", "gateway", "accounts", "litellm"),
    3,
    {"requests, c=1": 2, "requests, c=64": 4, "streams, c=1": 2, "streams, c=64": 4, "streams, c=256": 4},
)
QUICK = Mode(
    ("bare", "nginx", "gateway", "accounts"),
    1,
    {"requests, c=1": 1, "requests, c=64": 2, "streams, c=1": 1, "streams, c=64": 2, "streams, c=256": 2},
)


@dataclass
class Measured:
    """What has been found out about a running target so far. `broken` says why it is measured no further."""

    target: Target
    resident_mib: float
    alterations: Alterations | None = None
    readings: dict[Workload, list[Reading]] = field(default_factory=dict)
    broken: str | None = None


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every target is stopped
    mode = QUICK if options.quick else FULL
    names = options.targets or mode.targets
    began = time.monotonic()
    remarks: list[str] = []
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(running("bare"))
        load = prepare(upstream)
        measured = {}
        for name in names:
            try:
                target = upstream if name == "bare" else stack.enter_context(running(name, upstream.port))
            except LeftOut as reason:
                remarks.append(f"{name} is left out: {reason}")
            except Broken as reason:
                failures.append(str(reason))
            else:
                progress(f"{name} answers after {target.start_seconds:.1f} s")
                measured[name] = Measured(target, resident_mib(target.pid))
        for one in measured.values():
            check(one, upstream, load)
        rounds = options.rounds or mode.rounds
        for number in range(1, rounds + 1):
            for workload in WORKLOADS:
                progress(f"round {number} of {rounds}: {workload.name}")
                for one in measured.values():
                    read(one, workload, load, mode.seconds[workload.name])
    outcomes = [
        Outcome(name, one.target.start_seconds, one.resident_mib, one.alterations, one.readings)
        for name, one in measured.items()
    ]
    failures += [one.broken for one in measured.values() if one.broken]
    failures += [
        f"the gateway alters bytes; for example\n  {example[0]}\nbecame\n  {example[1]}"
        for outcome in outcomes
        if outcome.name == "gateway" and not outcome.exact
        for example in [(outcome.alterations and outcome.alterations.example) or ("an answer under load", "another")]
    ]
    print("\n" + report(outcomes, rounds))
    for line in [*remarks, *(f"BROKEN: {failure}" for failure in failures)]:
        print(f"\n{line}")
    save(outcomes, rounds, remarks, failures)
    print(f"\n{time.monotonic() - began:.0f} s; every reading: {FOLDER / 'result.json'}")
    return 1 if failures else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round without LiteLLM, in under a minute")
    parser.add_argument(
        "--targets", nargs="+", choices=list(RECIPES), metavar="TARGET", help=f"of {', '.join(RECIPES)}"
    )
    parser.add_argument("--rounds", type=int, help=f"how often each load is repeated (default {FULL.rounds}, quick 1)")
    return parser.parse_args(arguments)


def prepare(upstream: Target) -> Load:
    """Asks the upstream itself for what every answer is later compared with."""
    load = Load(compile_c("load"), FOLDER)
    for workload in WORKLOADS:
        load.expect(workload, ask(upstream.port, upstream.headers, workload.request))
    return load


def check(one: Measured, upstream: Target, load: Load) -> None:
    """Compares bytes, then warms up."""
    try:
        one.alterations = alterations(upstream.port, one.target.port, one.target.headers)
        for workload in WORKLOADS[1:3]:
            load.through(workload, one.target.port, one.target.headers, one.target.pid, WARM_UP_S)
    except (Unanswered, LoadFailed) as reason:
        one.broken = f"{one.target.name}: {reason}"


def read(one: Measured, workload: Workload, load: Load, seconds: float) -> None:
    if one.broken:
        return
    try:
        reading = load.through(workload, one.target.port, one.target.headers, one.target.pid, seconds)
    except LoadFailed as reason:
        one.broken = f"{one.target.name}: {reason}"
    else:
        one.readings.setdefault(workload, []).append(reading)


def save(outcomes: Sequence[Outcome], rounds: int, remarks: Sequence[str], failures: Sequence[str]) -> None:
    """Writes var/bench/result.json: what was printed, and every reading behind it."""
    targets = {
        outcome.name: {
            "start_seconds": outcome.start_seconds,
            "resident_mib": outcome.resident_mib,
            "alterations": asdict(outcome.alterations) if outcome.alterations else None,
            "readings": {
                workload.name: [
                    asdict(reading)
                    | {"cpu_ms_per_request": reading.cpu_ms_per_request}
                    | ({"cpu_us_per_chunk": reading.cpu_us_per_chunk} if workload.stream else {})
                    for reading in readings
                ]
                for workload, readings in outcome.readings.items()
            },
        }
        for outcome in outcomes
    }
    result = {
        "machine": machine(),
        "rounds": rounds,
        "targets": targets,
        "floors": [asdict(floor) for floor in floors({outcome.name: outcome for outcome in outcomes})],
        "remarks": remarks,
        "failures": failures,
    }
    (FOLDER / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
