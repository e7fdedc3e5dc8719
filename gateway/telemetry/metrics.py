"""Every metric of the gateway, with a bounded set of labels: a label never holds what a client may choose freely."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from gateway.domain.money import MILLION
from gateway.domain.usage import Usage

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class _Series(dict[tuple[str, ...], _Metric]):
    """Label values → the one series of a metric that has them; prometheus-client's own look-up costs ten times more."""

    def __init__(self, metric: _Metric) -> None:
        self._metric = metric

    def __missing__(self, values: tuple[str, ...]) -> _Metric:
        series = self[values] = self._metric.labels(*values)
        return series

    def forget(self, *labels: str) -> None:
        """Takes away every series that has all of these label values."""
        for values in [values for values in self if {*labels} <= {*values}]:
            del self[values]
            self._metric.remove(*values)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What an upstream has at one moment: requests on it, adapters that they hold places of, and requests that wait, by
    what they wait for."""

    upstream: str
    requests: int
    adapters: int
    waiting: Mapping[str, int]


class Metrics:
    """The gateway's metrics, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "gateway_requests", "Requests by how they ended.", ["model", "adapter", "upstream", "status", "reason"]
        )
        self._attempts = self._counter(
            "gateway_attempts", "Failed attempts on an upstream, by reason.", ["upstream", "reason"]
        )
        self._tokens = self._counter(
            "gateway_tokens",
            "Tokens in and out; estimated ones were counted by the gateway.",
            ["model", "adapter", "direction", "estimated"],
        )
        self._cost = self._counter(
            "gateway_cost", "Cost of what was used, in the currency of the prices.", ["model", "adapter", "upstream"]
        )
        self._adapter_requests = self._counter(
            "gateway_adapter_requests", "Requests that were sent to an adapter version, by how they ended.",
            ["adapter", "version", "reason"],
        )  # fmt: skip
        self._cancellations = self._counter(
            "gateway_cancellations", "Requests whose client left, by the phase they were in.", ["phase"]
        )
        self._refused = self._counter("gateway_refused", "Connections and requests refused at the edge.", ["reason"])
        self._ttft = self._histogram(
            "gateway_time_to_first_byte_seconds",
            "From the request to the first event of its answer.",
            ["model", "upstream"],
            _SECONDS,
        )
        self._inter_token = self._histogram(
            "gateway_inter_token_seconds", "Mean time between the tokens of a stream.", ["model", "upstream"],
            _TOKEN_SECONDS,
        )  # fmt: skip
        self._duration = self._histogram(
            "gateway_request_duration_seconds", "From the request to its end.", ["model", "upstream"], _SECONDS
        )
        self._waits = self._histogram(
            "gateway_wait_seconds",
            "How long requests waited that had to, by what they waited for first.",
            ["upstream", "reason"],
            _SECONDS,
        )
        self._upstream_up = self._gauge("gateway_upstream_up", "1 when the upstream answers.", ["upstream"])
        self._adapter_state = self._gauge(
            "gateway_adapter_state", "1 for the phase that an adapter version is in.", ["adapter", "version", "phase"]
        )
        self._engine_state = self._gauge(
            "gateway_engine_state", "1 for the state that an engine is in.", ["upstream", "state"]
        )
        self._engine_restarts = self._counter("gateway_engine_restarts", "Restarts of an engine.", ["upstream"])
        self._ledger_state = self._gauge(
            "gateway_ledger_state", "1 for the state that the ledger is in: ok or degraded.", ["state"]
        )
        self._ledger_queue = Gauge(
            "gateway_ledger_queue", "What the ledger has still to write.", registry=self.registry
        )
        self._ledger_recovered = Counter(
            "gateway_ledger_recovered",
            "Requests that were running when the gateway was killed, settled at the next start.",
            registry=self.registry,
        )
        self._ledger_unaccounted = Counter(
            "gateway_ledger_unaccounted",
            "Requests without a row: refused because the ledger was in trouble, or before they were opened.",
            registry=self.registry,
        )
        self._content_dropped = Counter(
            "gateway_content_log_dropped",
            "Requests of keys with log_content that are not in its file, which could not be written.",
            registry=self.registry,
        )
        self._limits_mode = self._gauge("gateway_limits_mode", "1 for where limits are counted.", ["mode"])
        self._database_state = self._gauge(
            "gateway_database_state", "1 for the state that the main database is in: ok or degraded.", ["state"]
        )
        self._unshipped = Gauge(
            "gateway_ledger_unshipped",
            "Rows of the ledger that the main database does not have yet.",
            registry=self.registry,
        )
        self._adapter_phases: dict[tuple[str, str], str] = {}
        self._engine_states: dict[str, str] = {}

    def _counter(self, name: str, text: str, labels: list[str]) -> _Series[Counter]:
        return _Series(Counter(name, text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: list[str], buckets: tuple[float, ...]) -> _Series[Histogram]:
        return _Series(Histogram(name, text, labels, buckets=buckets, registry=self.registry))

    def request(
        self,
        *,
        model: str,
        adapter: str,
        upstream: str,
        status: int,
        reason: str,
        usage: Usage | None,
        cost: int,
        ttft: float | None,
        inter_token: float | None,
        duration: float,
    ) -> None:
        """One request ended.  Called exactly once for each.  `adapter` is `name@version`, `cost` in micros.  Times in
        seconds."""
        self._requests[model, adapter, upstream, str(status), reason].inc()
        if adapter:
            name, _, version = adapter.rpartition("@")
            self._adapter_requests[name, version, reason].inc()
        if upstream:
            served = (model, upstream)
            self._duration[served].observe(duration)
            if ttft is not None:
                self._ttft[served].observe(ttft)
            if inter_token is not None:
                self._inter_token[served].observe(inter_token)
        if usage is not None:
            estimated = "true" if usage.estimated else "false"
            self._tokens[model, adapter, "in", estimated].inc(usage.prompt)
            self._tokens[model, adapter, "out", estimated].inc(usage.completion)
        if cost:
            self._cost[model, adapter, upstream].inc(cost / MILLION)

    def attempt_failed(self, upstream: str, reason: str) -> None:
        """An attempt on an upstream failed; another one may have served the request."""
        self._attempts[upstream, reason].inc()

    def waited(self, upstream: str, reason: str, seconds: float) -> None:
        """A request waited, whatever came of it."""
        self._waits[upstream, reason].observe(seconds)

    def cancelled(self, phase: str) -> None:
        """A client left while its request was in `phase`."""
        self._cancellations[(phase,)].inc()

    def refused(self, reason: str) -> None:
        """The edge refused a connection or a request before it was one."""
        self._refused[(reason,)].inc()

    def unaccounted(self) -> None:
        """A request has no row in the ledger, and used nothing."""
        self._ledger_unaccounted.inc()

    def content_dropped(self) -> None:
        """A request is missing in the content log.  Any thread may say so."""
        self._content_dropped.inc()

    def recovered(self, requests: int) -> None:
        """So many requests of an earlier life of the gateway were settled at the start."""
        self._ledger_recovered.inc(requests)

    def watch_ledger(self, healthy: Callable[[], bool], depth: Callable[[], int]) -> None:
        """Registers where the ledger's gauges are read when they are scraped, by whatever thread does that."""
        self._ledger_state.labels("ok").set_function(lambda: float(healthy()))
        self._ledger_state.labels("degraded").set_function(lambda: float(not healthy()))
        self._ledger_queue.set_function(lambda: float(depth()))

    def watch_database(self, reached: Callable[[], bool], unshipped: Callable[[], int]) -> None:
        """Registers where the main database's gauges are read when they are scraped, by whatever thread does that."""
        self._database_state.labels("ok").set_function(lambda: float(reached()))
        self._database_state.labels("degraded").set_function(lambda: float(not reached()))
        self._unshipped.set_function(lambda: float(unshipped()))

    def upstream_up(self, upstream: str, up: bool) -> None:
        """What the last probe of an upstream found."""
        self._upstream_up.labels(upstream).set(1 if up else 0)

    def adapter_state(self, name: str, version: str, phase: str) -> None:
        """An adapter version entered a phase; "" when it is gone."""
        previous = self._adapter_phases.pop((name, version), None)
        if previous is not None:
            self._adapter_state.remove(name, version, previous)
        if phase:
            self._adapter_phases[name, version] = phase
            self._adapter_state.labels(name, version, phase).set(1)
        elif version:
            # Versions come and go for as long as a gateway runs; what was counted for one goes with it.
            self._adapter_requests.forget(name, version)
            for series in (self._requests, self._tokens, self._cost, self._ttft, self._inter_token, self._duration):
                series.forget(f"{name}@{version}")

    def engine_state(self, upstream: str, state: str) -> None:
        """An engine entered a state."""
        previous = self._engine_states.get(upstream)
        if previous is not None:
            self._engine_state.labels(upstream, previous).set(0)
        self._engine_states[upstream] = state
        self._engine_state.labels(upstream, state).set(1)

    def engine_restart(self, upstream: str) -> None:
        """An engine is started again after it died."""
        self._engine_restarts[(upstream,)].inc()

    def limits_mode(self, mode: str) -> None:
        """Limits are counted in this process alone by design (`memory`), with others (`shared`), or alone for now
        (`local`)."""
        for each in ("memory", "shared", "local"):
            self._limits_mode.labels(each).set(1 if each == mode else 0)

    def watch(self, observe: Callable[[], Iterable[Occupancy]]) -> None:
        """Registers the source of the gauges that are read when they are scraped, by whatever thread does that."""
        self.registry.register(_Live(observe))

    def exposition(self) -> bytes:
        """The page for Prometheus.  Any thread may ask for it."""
        return generate_latest(self.registry)


class _Live(Collector):
    """Read when scraped, so that a request costs nothing for them."""

    def __init__(self, observe: Callable[[], Iterable[Occupancy]]) -> None:
        self._observe = observe

    def collect(self) -> Iterable[GaugeMetricFamily]:
        flight = GaugeMetricFamily("gateway_requests_in_flight", "Requests on an upstream.", labels=["upstream"])
        adapters = GaugeMetricFamily("gateway_adapters_active", "Adapters that have requests.", labels=["upstream"])
        queue = GaugeMetricFamily(
            "gateway_requests_waiting", "Requests that wait, by what they wait for.", labels=["upstream", "reason"]
        )
        for one in self._observe():
            flight.add_metric([one.upstream], one.requests)
            adapters.add_metric([one.upstream], one.adapters)
            for reason, requests in one.waiting.items():
                queue.add_metric([one.upstream, reason], requests)
        return (flight, adapters, queue)
