"""What surrounds every request: its id, its log line, its count, its error of last resort, and the door.

Pure ASGI: Starlette's BaseHTTPMiddleware breaks streaming and cancellation.
"""

from __future__ import annotations

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.addresses import peer_of
from service.admission import Admission
from service.api.errors import error_response
from service.api.exchange import TASKS, Exchange, begin_exchange, exchange_of
from service.batching.clock import Clock
from service.errors import ClientGone, InferenceFailed, ServiceError
from service.settings import LimitSettings
from service.telemetry import Metrics

log = structlog.get_logger(__name__)

QUIET_PATHS = {"/health/live", "/health/ready", "/metrics"}
"""Asked every few seconds by machines: logged at level debug."""

LONGEST_PATH = 200
CLOSE = (b"connection", b"close")


class ExchangeMiddleware:
    """Outermost: whatever happens inside, an answer with an id goes out, one line is logged, one request counted."""

    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Clock, admission: Admission) -> None:
        self._app, self._metrics, self._clock, self._admission = app, metrics, clock, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = begin_exchange(scope, self._clock.now_s())
        id_header = (b"x-request-id", exchange.request_id.encode())

        async def watched_receive() -> Message:
            message = await receive()
            exchange.client_left = exchange.client_left or message["type"] == "http.disconnect"
            return message

        async def tagged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = message.get("headers", ())
                # Proxies reuse connections: the next request over this one would meet a process that is gone.
                closes = self._admission.draining and all(name != b"connection" for name, _ in headers)
                message["headers"] = [*headers, id_header, *((CLOSE,) if closes else ())]
            elif not message.get("more_body", False):
                exchange.complete = not exchange.client_left
            await send(message)

        try:
            await self._app(scope, watched_receive, tagged_send)
        except ClientGone:
            exchange.client_left = True
        except ServiceError as error:
            exchange.failure = error
            await error_response(error, exchange.request_id)(scope, watched_receive, tagged_send)
        except Exception:
            log.exception("a request failed", request_id=exchange.request_id, path=scope["path"][:LONGEST_PATH])
            exchange.failure = InferenceFailed("something went wrong inside the service: its log says what")
            if exchange.status:
                raise
            await error_response(exchange.failure, exchange.request_id)(scope, watched_receive, tagged_send)
        finally:
            self._report(exchange, scope, self._clock.now_s() - exchange.arrived_s)

    def _report(self, exchange: Exchange, scope: Scope, seconds: float) -> None:
        outcome, failure = exchange.outcome, exchange.failure
        if exchange.task is not None:
            self._metrics.requests.labels(exchange.task, str(outcome)).inc()
            tier = exchange.tier.value
            self._metrics.tier_requests.labels(tier, str(outcome)).inc()
            if outcome == 200:
                self._metrics.e2e_latency.observe(seconds)
                self._metrics.tier_latency.labels(tier).observe(seconds)
            # Of tasks only: a readiness probe that hears "not ready" has not been rejected.
            if failure is not None and failure.rejection is not None:
                self._metrics.rejected.labels(failure.rejection).inc()
                self._metrics.tier_rejected.labels(tier, failure.rejection).inc()
        path = scope["path"][:LONGEST_PATH]
        (log.debug if path in QUIET_PATHS else log.info)(
            "request",
            request_id=exchange.request_id,
            method=scope["method"],
            path=path,
            status=outcome,
            task=exchange.task,
            ms=round(seconds * 1000, 1),
            **({} if failure is None else {"error": failure.message}),
        )


class AdmissionMiddleware:
    """The door for requests to the models: closed while the service drains, or as long as it is full.

    Other paths pass: what does not exist is 404 whatever the load.
    """

    def __init__(self, app: ASGIApp, admission: Admission, limits: LimitSettings) -> None:
        self._app, self._admission, self._limits = app, admission, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keep what the request holds until its last byte has gone out. Raises as `Admission.visit` does."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in TASKS:
            await self._app(scope, receive, send)
            return
        host, _ = scope.get("client") or (None, 0)
        with self._admission.visit(peer_of(host, self._limits.trusted_peers)) as visit:
            exchange_of(scope).visit = visit
            await self._app(scope, receive, send)
