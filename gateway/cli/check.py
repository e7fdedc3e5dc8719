"""`gateway check`: is the file right, and do the upstreams answer?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from gateway.backends import BACKENDS
from gateway.cli.options import ConfigFile, read
from gateway.cli.output import Failure, print_table, say
from gateway.controlplane.compiler import upstream_record
from gateway.controlplane.config import Config, UpstreamSettings
from gateway.controlplane.contact import Contact, Unanswered
from gateway.controlplane.probes import NoList, models_of

_PROBE_SECONDS = 15.0  # for all that one upstream is asked
_SHOWN = 8  # models of an upstream that the table names


@dataclass(frozen=True, slots=True)
class _Probed:
    """What an upstream answered.  `fault` "": all is well; `fatal`: nothing can be served by it."""

    name: str
    models: tuple[str, ...] = ()
    fault: str = ""
    fatal: bool = False


def check(
    config: ConfigFile,
    probe: Annotated[bool, typer.Option("--probe", help="Also ask the upstreams which models they have.")] = False,
) -> None:
    """Validate the configuration file: exit 0, or 1 with each mistake, its place, and what to write instead."""
    settings = read(config)
    say(f"{config}: the configuration is right.")
    if not probe:
        return
    probed = asyncio.run(_probe_all(settings))
    print_table(("upstream", "kind", "answer", "models"), map(_row, settings.upstreams, probed))
    if silent := [result.name for result in probed if result.fatal]:
        raise Failure(f"{len(silent)} of {len(probed)} upstreams cannot be used now: {', '.join(silent)}")


def _row(upstream: UpstreamSettings, probed: _Probed) -> tuple[str, ...]:
    names = [upstream.prefix + name for name in probed.models]
    more = f", … ({len(names)})" if len(names) > _SHOWN else ""
    return upstream.name, upstream.kind, probed.fault or "yes", ", ".join(names[:_SHOWN]) + more


async def _probe_all(config: Config) -> list[_Probed]:
    return await asyncio.gather(*(_probe(config, upstream) for upstream in config.upstreams))


async def _probe(config: Config, upstream: UpstreamSettings) -> _Probed:
    if upstream.engine is not None:
        return _Probed(upstream.name, (upstream.engine.public_name,), "the gateway starts it")
    record = upstream_record(config, upstream)
    try:
        async with asyncio.timeout(_PROBE_SECONDS), Contact(record) as contact:
            listed = [model.id for model in await models_of(contact, BACKENDS[upstream.kind].discover(record))]
    except TimeoutError:
        return _Probed(upstream.name, fault=f"did not answer within {_PROBE_SECONDS:g} s", fatal=True)
    except Unanswered as error:
        return _Probed(upstream.name, fault=str(error), fatal=True)
    except NoList as error:
        # A vendor without a list is served by the names in the file.
        return _Probed(upstream.name, upstream.models or (), str(error), fatal=not upstream.models)
    if upstream.models is None:
        return _Probed(upstream.name, tuple(listed))
    return _Probed(upstream.name, upstream.models, _missing(upstream.models, listed, upstream.kind))


def _missing(wanted: Iterable[str], listed: Iterable[str], kind: str) -> str:
    """Names of the file that the upstream does not list; Ollama takes a name without a tag for its `latest`."""
    there = set(listed)
    missing = [n for n in wanted if n not in there and not (kind == "ollama" and f"{n}:latest" in there)]
    return f"yes, but it does not list {', '.join(missing)}" if missing else ""
