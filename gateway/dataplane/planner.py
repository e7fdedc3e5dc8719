"""Where a call goes, and the wait until that is known: while an engine starts, or an adapter is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from gateway.dataplane.admission import WaitsFor
from gateway.dataplane.metering import Record
from gateway.dataplane.reply import Reply
from gateway.dataplane.scope import Scope
from gateway.dataplane.upstreams import SnapshotHolder, Upstreams
from gateway.domain.call import Call
from gateway.domain.errors import Overloaded, Reason
from gateway.domain.plan import Plan, plan, plan_again
from gateway.domain.snapshot import Concurrency, Readiness, Snapshot
from gateway.telemetry.metrics import Metrics

_VERDICT = 2.0  # seconds that the control plane has to see what an attempt has found


class Planner:
    """Plans calls.  `demand` is told the name of an adapter (`name@version`) that a call waits for, again whenever its
    route has changed and it is still not there; it must not block."""

    def __init__(
        self, snapshots: SnapshotHolder, upstreams: Upstreams, metrics: Metrics, demand: Callable[[str], None]
    ) -> None:
        self._snapshots = snapshots
        self._upstreams = upstreams
        self._metrics = metrics
        self._demand = demand

    async def plan(
        self, call: Call, scope: Scope, record: Record, reply: Reply, version: str | None = None
    ) -> tuple[Snapshot, Plan]:
        """A plan with a target that is ready, and the snapshot that the request keeps from then on.

        Which version of an adapter answers is decided by that snapshot, and not by the one that the wait began with: a
        name that moves on to a version that is loaded ends the wait.  `version` is for a request that has one.
        Raises NotFound, and Overloaded when there is no hope or no time left.
        """
        snapshot = self._snapshots.current
        planned = _plan(snapshot, call, version)
        record.model = call.model  # now that it is a name that exists: the labels of metrics are made of it
        if planned.targets:
            return snapshot, planned
        return await self._wait(call, scope, record, reply, version, snapshot, planned)

    async def again(
        self, call: Call, scope: Scope, record: Record, reply: Reply, lost: str, before: Snapshot
    ) -> tuple[Snapshot, Plan] | None:
        """The plan for a request that was sent to a version of an adapter and did not find it there, nor anywhere else
        in `before`.  None: the control plane sees nothing of the kind, or the version is gone for good."""
        exact = before.routes.get(lost)
        if exact is None:
            return None
        scope.enter("loading", _VERDICT, Reason.LIMIT)
        try:
            await self._snapshots.rerouted(exact)
        except asyncio.CancelledError:
            if scope.reason is not Reason.LIMIT or not scope.resume():
                raise
            return None
        if lost not in self._snapshots.current.routes:
            return None
        return await self.plan(call, scope, record, reply, lost)

    async def _wait(
        self,
        call: Call,
        scope: Scope,
        record: Record,
        reply: Reply,
        version: str | None,
        snapshot: Snapshot,
        planned: Plan,
    ) -> tuple[Snapshot, Plan]:
        since = time.monotonic()
        record.open(call)
        with self._queued(call, scope, snapshot, planned):
            while not planned.targets:
                if not planned.waiting:
                    raise _unavailable(call, planned)
                adapters = {target.adapter for target in planned.waiting if target.adapter is not None}
                with self._upstreams.wanting(snapshot, adapters, since):
                    for adapter in adapters:
                        self._demand(adapter)
                    try:
                        if call.client.openwebui and call.stream:
                            await reply.status(planned.waiting[0].note or "Loading the model")
                        await self._snapshots.rerouted(planned.route)
                    except asyncio.CancelledError:
                        if scope.reason is not Reason.LIMIT or not scope.resume():
                            raise
                        raise _not_ready(call, planned) from None
                snapshot = self._snapshots.current
                planned = _plan(snapshot, call, version)
        return snapshot, planned

    @contextlib.contextmanager
    def _queued(self, call: Call, scope: Scope, snapshot: Snapshot, planned: Plan) -> Iterator[None]:
        """A place among those that wait for the upstream, for as long as one may wait on it.  There are as many as it
        could take when it is ready: more would be refused then."""
        if not planned.waiting:
            raise _unavailable(call, planned)
        name = planned.waiting[0].upstream
        upstream = snapshot.upstreams.get(name)
        bounds = Concurrency() if upstream is None else upstream.concurrency
        loading = self._upstreams.loading
        if loading[name] >= bounds.limit + bounds.queue:
            raise Overloaded(
                f"The model '{call.model}' is not ready yet, and {loading[name]} requests are waiting for the upstream "
                f"'{name}'; try again in a moment.", code="model_loading", retry_after=10,
            )  # fmt: skip
        scope.enter("loading", bounds.queue_timeout, Reason.LIMIT)
        began = time.monotonic()
        loading[name] += 1
        try:
            yield
        finally:
            loading[name] -= 1
            self._metrics.waited(name, WaitsFor.LOADING, time.monotonic() - began)


def _plan(snapshot: Snapshot, call: Call, version: str | None) -> Plan:
    if version is not None:
        return plan_again(snapshot, call.model, version)
    return plan(snapshot, call.model, call.client.task, call.sticky, call.principal, call.client.bounds)


def _unavailable(call: Call, planned: Plan) -> Overloaded:
    down = next((t for t in planned.route.targets if t.readiness is Readiness.DOWN), None)
    note = down.note if down else "it has no target"
    return Overloaded(
        f"The model '{call.model}' is not available: {note}.",
        code="model_unavailable", reason=Reason.UPSTREAM_CONNECT, retry_after=5,
    )  # fmt: skip


def _not_ready(call: Call, planned: Plan) -> Overloaded:
    return Overloaded(
        f"The model '{call.model}' is not ready yet: {planned.waiting[0].note or 'it is being loaded'}.",
        code="model_loading", retry_after=10,
    )  # fmt: skip
