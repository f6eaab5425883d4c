"""The gateway as a process: its socket, its life under uvicorn, its end.

SIGTERM ─▶ draining: readiness and new requests answer 503, what is in flight goes on
        ─▶ nothing is in flight, or all but the end of grace_s is over ─▶ the rest is answered 503
        ─▶ those answers go out, the models are left ─▶ exit 0, at grace_s at the latest
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from types import FrameType

import structlog
import uvicorn
from sse_starlette.sse import AppStatus
from uvicorn.config import STARTUP_FAILURE

from service.app import build_app
from service.connection.descriptors import within_descriptors
from service.connection.protocol import connections_within
from service.gateway import Gateway
from service.logs import configure_logging
from service.settings import Settings

log = structlog.get_logger(__name__)

BACKLOG = 2048
LONGEST_END_S, SHORTEST_END_S = 3.0, 1.0
"""Of grace_s: a third for answers that have been decided to go out, one for leaving the models, and one for Python's
own end (0.8 s on a busy machine)."""

CAUSES = {
    errno.EADDRINUSE: "is in use: stop what listens there, or choose another (PORT=… make serve, --port)",
    errno.EACCES: "needs rights that this user does not have: choose a port from 1024 up (PORT=… make serve, --port)",
    errno.EADDRNOTAVAIL: "cannot be had, because the address is not this machine's: choose another (--host)",
}


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; connections wait until `run` takes them. Port 0 is any free one.

    Raises ValueError naming port, cause and fix.
    """
    place = f"port {port} on {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "it is no name of a host"
        raise ValueError(f"{place} cannot be had: {host!r} is no address ({reason}): choose another (--host)") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # Not left to uvicorn: until one of them listens, two processes may bind the same port.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        cause = CAUSES.get(error.errno or 0, f"cannot be had ({error.strerror}): choose another (--host, --port)")
        raise ValueError(f"{place} {cause}") from None
    return listener


def run(settings: Settings, listener: socket.socket) -> None:
    """Serve on a socket until SIGTERM or SIGINT, then drain.

    Raises BundleError or ValueError where the bundle is damaged, SystemExit(1) where the models cannot be loaded.
    """
    configure_logging(settings.server.log_level)
    app = build_app(settings)
    gateway: Gateway = app.state.gateway
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        # Typed as a class, and called like any factory.
        http=connections_within(  # type: ignore[arg-type]
            within_descriptors(settings.limits), gateway.metrics.count_rejected_connection
        ),
        # X-Forwarded-For is believed of nobody else.
        forwarded_allow_ips=[str(network) for network in settings.limits.trusted_peers],
        lifespan="on",
        backlog=BACKLOG,
        timeout_keep_alive=settings.server.keep_alive_s,
        # uvicorn's type says whole seconds, and any number will do.
        timeout_graceful_shutdown=end_of(settings.server.grace_s) / 3,  # type: ignore[arg-type]
    )
    # Streams end when uvicorn stops, not when the signal comes.
    AppStatus.disable_automatic_graceful_drain()
    try:
        DrainingServer(config, gateway).run(sockets=[listener])
    except SystemExit as stop:
        raise SystemExit(1 if stop.code == STARTUP_FAILURE else stop.code) from stop


def end_of(grace_s: float) -> float:
    """Seconds of a grace time in which requests do not go on any more."""
    return min(LONGEST_END_S, max(SHORTEST_END_S, grace_s / 2))


class DrainingServer(uvicorn.Server):
    """uvicorn closes its socket at the first signal; this one goes on answering 503 until all requests are done."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hurry = asyncio.Event()
        self._end_s: float | None = None
        """On the loop's clock: when uvicorn has to be done."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the models, then take connections."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        log.info("listening", addresses=[str(each.getsockname()) for each in sockets or ()])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second SIGINT ends the drain. Signals are not raised again, so that the exit status is 0."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain, sig)

    def _begin_drain(self, sig: int) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._finish())
        elif sig == signal.SIGINT:
            self._hurry.set()

    async def _finish(self) -> None:
        admission, grace_s = self._gateway.admission, self._gateway.settings.server.grace_s
        end_s = end_of(grace_s)
        log.info("draining", in_flight=admission.in_flight, grace_s=grace_s)
        either = {asyncio.create_task(admission.drain()), asyncio.create_task(self._hurry.wait())}
        _, pending = await asyncio.wait(either, timeout=max(0.0, grace_s - end_s), return_when=asyncio.FIRST_COMPLETED)
        self._end_s = asyncio.get_running_loop().time() + end_s * 2 / 3
        for task in pending:
            task.cancel()
        if admission.in_flight:
            log.warning("the time to drain is over", in_flight=admission.in_flight)
            try:
                async with asyncio.timeout(end_s / 3):
                    await self._gateway.served.close_lanes()
            except TimeoutError:
                log.warning("requests do not end", in_flight=admission.in_flight)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers go out and leave the models, as long as there is time."""
        try:
            async with asyncio.timeout_at(self._end_s):
                await super().shutdown(sockets)
        except TimeoutError:
            log.warning("the time to end is over", tasks=len(self.server_state.tasks))
