"""How long the control plane takes to compile a snapshot, with many adapters.

    .venv/bin/python bench/compiler.py [ADAPTERS] [VERSIONS] [UPSTREAMS]

`from nothing`: the first snapshot, and the one after an upstream went down.  `one changed`: another version became
current, or was loaded.  `nothing changed`: the same moment again, in values that are equal and not the same.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from gateway.controlplane.compiler import Compiler
from gateway.controlplane.config import Config
from gateway.controlplane.observed import AdapterStatus, Observed, Phase, UpstreamState, UpstreamStatus
from gateway.domain.listing import ListedModel
from gateway.domain.snapshot import Snapshot

_ROUNDS = 50


def main() -> None:
    """Prints a table of milliseconds."""
    numbers = [int(argument) for argument in sys.argv[1:]]
    adapters, versions, upstreams = numbers + [1000, 2, 2][len(numbers) :]
    names = [f"u{index}" for index in range(upstreams)]
    config = Config.model_validate(
        {"upstreams": [{"name": name, "kind": "vllm", "base_url": f"http://{name}/v1"} for name in names]}
    )
    print(f"{adapters} adapters, {versions} versions each, {upstreams} upstreams; ms of CPU time (median, worst)")
    first = _observed(names, adapters, versions)
    _show("from nothing", [_timed(Compiler(config).compile, first) for _ in range(5)])
    compiler = Compiler(config)
    compiler.compile(first)
    down = replace(
        first, upstreams={**first.upstreams, names[0]: replace(first.upstreams[names[0]], state=UpstreamState.DOWN)}
    )
    _show("one upstream down and up", [_timed(compiler.compile, each) for each in (down, first) * 3])
    moved = [_moved(first, index % adapters) for index in range(_ROUNDS)]
    _show("one changed", [_timed(compiler.compile, each) for each in moved])
    equal = [_observed(names, adapters, versions) for _ in range(5)]
    compiler.compile(first)
    _show("nothing changed, all equal", [_timed(compiler.compile, each) for each in equal])
    _show("nothing changed", [_timed(compiler.compile, first) for _ in range(_ROUNDS)])


def _observed(upstreams: list[str], adapters: int, versions: int) -> Observed:
    statuses = tuple(
        AdapterStatus(
            f"adapter-{index:05}",
            Phase.READY,
            f"{index:06x}{version:06x}",
            upstreams=tuple(upstreams),
            held=frozenset(upstreams),
            current=version == 0,
        )
        for index in range(adapters)
        for version in range(versions)
    )
    loaded = tuple(ListedModel(each.engine_name, parent="base") for each in statuses if each.current)
    up = UpstreamStatus(UpstreamState.UP, 0.0, models=(ListedModel("base"), *loaded))
    return Observed(dict.fromkeys(upstreams, up), statuses)


def _moved(observed: Observed, index: int) -> Observed:
    """The adapter's plain name points to its next version, and an engine holds one adapter less."""
    name = observed.adapters[index * 2 % len(observed.adapters)].name
    adapters = tuple(
        replace(each, current=not each.current) if each.name == name else each for each in observed.adapters
    )
    first = next(iter(observed.upstreams))
    held = replace(observed.upstreams[first], models=observed.upstreams[first].models[:-1])
    return replace(observed, adapters=adapters, upstreams={**observed.upstreams, first: held})


def _timed(compile: Callable[[Observed], Snapshot], observed: Observed) -> float:
    started = time.thread_time()
    compile(observed)
    return (time.thread_time() - started) * 1000


def _show(what: str, taken: list[float]) -> None:
    print(f"  {what:28} {statistics.median(taken):8.2f} {max(taken):8.2f}")


if __name__ == "__main__":
    main()
