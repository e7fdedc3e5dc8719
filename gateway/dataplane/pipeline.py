"""A request from its first byte to its settlement, top to bottom: admit, plan, dispatch, relay, settle."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gateway.dataplane import admit
from gateway.dataplane.dispatch import Attempt
from gateway.dataplane.metered import Turnstile
from gateway.dataplane.metering import Ledger, Record
from gateway.dataplane.planner import Planner
from gateway.dataplane.reply import ClientConnection, Receive, Reply, Send
from gateway.dataplane.scope import Scope
from gateway.dataplane.transcript import Contents, Transcript
from gateway.dataplane.upstreams import SnapshotHolder, Upstreams
from gateway.domain.call import Call, Client, Endpoint
from gateway.domain.errors import GatewayError, Overloaded, Reason, Unauthenticated, UpstreamFault
from gateway.domain.people import NOBODY, Standing
from gateway.domain.plan import Plan
from gateway.domain.principal import Principal
from gateway.domain.snapshot import Snapshot
from gateway.telemetry.metrics import Metrics

_log = logging.getLogger("gateway.pipeline")
_BODY_PHASE = 3600.0  # seconds; the server's own limits on a slow body come long before
_PLANS = 3  # for one request, each but the first because its version of an adapter was not where it should be
_NOTED_EVERY = 1.0  # seconds between two notes of how far a stream is: so much of it is lost when we are killed
_CLIENT_CLOSED = 499  # nginx's status for a client that left before it was answered

#: How a request that was ended by a time-out, a drain or the end of its key is told to its client.
_ENDINGS: Mapping[Reason, str] = {
    Reason.UPSTREAM_IDLE: "The upstream stopped sending before its answer was complete.",
    Reason.UPSTREAM_TOTAL: "The answer took longer than the gateway allows.",
    Reason.AUTH: "The API key was revoked.",
    Reason.GATEWAY_DRAIN: "The gateway is shutting down and had to end this answer.",
}


class Pipeline:
    """Serves calls of the inference endpoints.

    `suspect` is told the name of an upstream that could not be reached or has lost a model, so that the control plane
    looks at it at once; `demand` (Planner) that of an adapter that is waited for.  They must not block.  `ledger` knows
    of a request before its client is shown anything, and of its end before that is shown; `turnstile` refuses what is
    too much.  `contents` has what requests of keys with `log_content` asked and were answered; None: no key has that.
    """

    def __init__(
        self,
        snapshots: SnapshotHolder,
        upstreams: Upstreams,
        metrics: Metrics,
        ledger: Ledger,
        turnstile: Turnstile,
        suspect: Callable[[str], None],
        demand: Callable[[str], None],
        max_body: int,
        contents: Contents | None = None,
    ) -> None:
        self._snapshots = snapshots
        self._planner = Planner(snapshots, upstreams, metrics, demand)
        self._upstreams = upstreams
        self._metrics = metrics
        self._ledger = ledger
        self._turnstile = turnstile
        self._suspect = suspect
        self._max_body = max_body
        self._contents = contents
        self._own_secret = os.urandom(32)  # of the cache salts, where the operator gives none
        self._live: dict[Scope, Record] = {}
        self._draining = False
        self._noting: asyncio.TimerHandle | None = None

    def draining(self) -> bool:
        """Whether the gateway is shutting down."""
        return self._draining

    def begin_drain(self) -> None:
        """From now on new requests are refused; those in flight go on."""
        self._draining = True

    def end_streams(self) -> None:
        """Ends what is still in flight, each with an error that says so."""
        for scope in tuple(self._live):
            scope.cancel(Reason.GATEWAY_DRAIN)

    def end_key(self, key: str, kept: Collection[int]) -> None:
        """Ends what is in flight for this key, but for what was asked with a secret of these rotations.  Whoever calls
        has published the snapshot before, so that nothing more comes."""
        for scope, record in tuple(self._live.items()):
            principal = record.principal
            if principal.key == key and principal.rotation not in kept:
                scope.cancel(Reason.AUTH)

    async def serve(
        self,
        endpoint: Endpoint,
        principal: Principal,
        client: Client,
        receive: Receive,
        send: Send,
        connection: ClientConnection,
    ) -> None:
        """One request.  Whatever ends it, it is settled exactly once, and before its client is shown the end."""
        at = time.time_ns()
        record = Record(
            admit.new_request_id(at), at, endpoint.value, principal, self._ledger, self._metrics,
            task=client.task, user=client.user, team=client.team,
        )  # fmt: skip
        if principal.log_content:
            record.transcript = Transcript()
            send = record.transcript.hearing(send, record.endpoint)
        reply = Reply(send, connection, record.request_id)
        scope = Scope(total=_BODY_PHASE)
        connection.on_disconnect = lambda: scope.cancel(
            Reason.SLOW_CLIENT if connection.stalled else Reason.CLIENT_CANCEL
        )
        self._live[scope] = record
        if self._noting is None:
            self._note()
        reason = Reason.GATEWAY_CRASH
        try:
            body = await admit.read_body(receive, self._max_body)
            call = self._admit(endpoint, principal, client, body, record)
            await self._dispatch(call, scope, record, reply)
        except GatewayError as error:
            reason = error.reason
            await _fail(error, scope, record, reply)
        except admit.ClientLeft:
            reason, record.status = Reason.CLIENT_CANCEL, _CLIENT_CLOSED
        except asyncio.CancelledError:
            ended = scope.caught()
            scope.close()
            if ended is None:
                reason = Reason.GATEWAY_DRAIN if self._draining else reason
                raise
            reason = ended
            if reason in _ENDINGS:
                await _fail(_ended(reason), scope, record, reply)
            else:
                record.status = record.status or _CLIENT_CLOSED
        except Exception:  # noqa: BLE001
            # The one boundary: a fault of our own costs one request, is told in our words and logged in full.
            _log.exception("internal error", extra={"request_id": record.request_id})
            record.status = 500
            failure = GatewayError(f"The gateway failed to serve this request ({record.request_id}).")
            await _fail(failure, scope, record, reply)
        finally:
            # Nothing is awaited here: a task that is cancelled on its way out has still handed its row over.
            scope.close()
            connection.on_disconnect = None
            del self._live[scope]
            record.settle(reason, scope.phase)
            if record.transcript is not None and self._contents is not None:
                self._contents.put(record.content(record.transcript))

    def _note(self) -> None:
        """Notes how far the streams are, again and again while there is anything in flight."""
        self._noting = None
        for record in self._live.values():
            record.checkpoint()
        if self._live:
            self._noting = asyncio.get_running_loop().call_later(_NOTED_EVERY, self._note)

    def _admit(self, endpoint: Endpoint, principal: Principal, client: Client, raw: bytes, record: Record) -> Call:
        if self._draining:
            raise Overloaded(
                "The gateway is shutting down.", code="draining", reason=Reason.GATEWAY_DRAIN, retry_after=5
            )
        if self._ledger.trouble is not None:
            raise Overloaded(
                "The gateway cannot account for requests at this moment, and answers none.",
                code="ledger_unavailable", retry_after=5,
            )  # fmt: skip
        body, rules = admit.parse(raw), self._snapshots.current
        if record.transcript is not None:
            record.transcript.asked(body, len(raw))
        call = admit.build_call(endpoint, body, len(raw), record.request_id, principal, client, rules, self._own_secret)
        record.user = call.client.user
        return call

    async def _dispatch(self, call: Call, scope: Scope, record: Record, reply: Reply) -> None:
        """Serves the call from its plan; from another one for the same version of an adapter, if that turns out to be
        where it is not.  The one time-out of the whole counts from the first plan."""
        snapshot, planned = await self._planner.plan(call, scope, record, reply)
        record.permit = await self._turnstile.admit(call, planned.targets, snapshot.allowances)
        scope.limit(snapshot.upstreams[planned.targets[0].upstream].timeouts.total)
        for plans_left in reversed(range(_PLANS)):
            failure = await self._try(call, snapshot, planned, scope, record, reply)
            if failure is None:
                return
            again = None
            if plans_left and failure.lost is not None:
                again = await self._planner.again(call, scope, record, reply, failure.lost, snapshot)
            if again is None:
                raise _final(failure.fault)
            snapshot, planned = again

    async def _try(
        self, call: Call, snapshot: Snapshot, planned: Plan, scope: Scope, record: Record, reply: Reply
    ) -> _Failure | None:
        """Tries the plan's targets in order while nothing has been sent to the client.  None: one has served it."""
        failure: _Failure | None = None
        held = self._upstreams.hold(snapshot, planned.targets)
        try:
            for target in planned.targets:
                upstream = snapshot.upstreams[target.upstream]
                record.serve_from(target)
                record.open(call)
                attempt = Attempt(
                    call, target, upstream, self._upstreams.get(upstream), scope, record, reply, self._metrics
                )
                try:
                    await attempt.run()
                except (UpstreamFault, Overloaded) as fault:
                    gone = self._attempt_failed(target.upstream, fault)
                    if reply.committed or (isinstance(fault, UpstreamFault) and not fault.retryable):
                        raise _final(fault) from None
                    lost = target.adapter if gone else None
                    failure = _Failure(fault, lost or (failure.lost if failure is not None else None))
                else:
                    return None
        finally:
            self._upstreams.release(held)
        return failure

    def _attempt_failed(self, upstream: str, fault: UpstreamFault | Overloaded) -> bool:
        """Whether it failed because something was not there, so that the upstream has done nothing."""
        self._metrics.attempt_failed(upstream, fault.reason.value)
        gone = fault.reason is Reason.UPSTREAM_CONNECT or fault.code == "model_not_loaded"
        if gone:
            self._suspect(upstream)
        why = fault.message
        if isinstance(fault, UpstreamFault) and not fault.retryable:
            why = f"refused with status {fault.upstream_status}"  # its message may quote the prompt
        _log.warning("attempt failed", extra={"upstream": upstream, "reason": fault.reason.value, "why": why})
        return gone


@dataclass(frozen=True, slots=True)
class _Failure:
    """Every target of a plan failed, the last one so.  `lost`: the version of an adapter that one of them does not have
    any more, or is not there to have."""

    fault: UpstreamFault | Overloaded
    lost: str | None


async def _fail(error: GatewayError, scope: Scope, record: Record, reply: Reply) -> None:
    """Settles a request that has failed, and then tells its client."""
    scope.close()
    record.status = record.status or error.status
    record.settle(error.reason, scope.phase)
    await reply.fail(error)


def _final(fault: UpstreamFault | Overloaded) -> GatewayError:
    """The fault that the client is told of.  Where tokens may have been spent the SDK is told not to ask again by
    itself."""
    if isinstance(fault, UpstreamFault) and fault.should_retry is None and fault.status >= 500:
        fault.should_retry = fault.retry_after is not None
    return fault


def _ended(reason: Reason) -> GatewayError:
    message = _ENDINGS[reason]
    if reason is Reason.AUTH:
        return Unauthenticated(message, code="api_key_revoked")
    if reason is Reason.GATEWAY_DRAIN:
        return Overloaded(message, code=reason.value, reason=reason, retry_after=5)
    return UpstreamFault(message, reason=reason, retryable=False, status=504, should_retry=False)


def client_of(headers: Mapping[bytes, bytes], standing: Standing = NOBODY, team: str = "") -> Client:
    """What the headers say of the program that asks (names lower-case), and who is behind it.  `team`: the key's.

    Open WebUI sends `x-openwebui-*` headers: https://docs.openwebui.com, `ENABLE_FORWARD_USER_INFO_HEADERS` and a
    connection's custom headers.
    """
    task = headers.get(b"x-openwebui-task", b"").decode("latin-1")[:64]
    chat = headers.get(b"x-openwebui-chat-id", b"").decode("latin-1")[:128]
    openwebui = b"\nx-openwebui-" in b"\n".join((b"", *headers))  # no name holds a line break
    return Client(
        openwebui, task, chat, standing.user, standing.verified, standing.roles, standing.team or team,
        standing.rights, standing.bounds,
    )  # fmt: skip
