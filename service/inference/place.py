"""One place where the models run: a Triton, or the engine in this process.

unproven ─▶ canaries ─▶ ready ─── a check every second ──▶ …
    ▲          │ fail     │ ▲ a canary came back
    │          ▼          ▼ │
    │        down      suspect (a batch failed: requests go on while a canary looks into it)
    └── the connection was lost, or a check took too long: requests wait until it is known who answers
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import structlog

from deploy.triton.protocol import EngineStats, StepTotals
from service.errors import ServiceError, Unavailable
from service.inference.canary import ask_every_task
from service.inference.protocol import BundleIdentity, InferenceClient, ServerInfo

log = structlog.get_logger(__name__)

CHECK_INTERVAL_S = 1.0
"""Between two checks of a place that is ready: it asks who answers, and for the engine's occupancy."""

RETRY_INTERVAL_S = 0.25
CANARY_TIMEOUT_S = 30.0
"""The first requests after a start take the memory and tune the kernels that later ones find."""

EMPTY = EngineStats(
    slots_used=0, slots_total=0, waiting_rows=0, generation_steps=StepTotals(), summary_steps=StepTotals()
)


class Standing(enum.Enum):
    """Whether requests may be sent to a place."""

    UNPROVEN = enum.auto()
    """Nobody knows yet who answers there: requests wait."""

    READY = enum.auto()
    SUSPECT = enum.auto()
    """A batch failed there, and others may not: requests are sent until a canary fails too."""

    DOWN = enum.auto()
    """The last check failed: nothing is sent."""


class Place:
    """A client, and what is known of whoever answers it."""

    def __init__(
        self,
        name: str,
        client: InferenceClient,
        bundle: BundleIdentity,
        special_tokens: Mapping[str, int],
        timeout_s: float,
    ) -> None:
        """Make a place that has yet to prove itself.

        Args:
            name: for people: an address.
            client: the way there.
            bundle: the gateway's own; a place that serves another is never ready.
            special_tokens: the bundle's, for canaries.
            timeout_s: the patience of a check of a place that is ready.
        """
        self.name, self.client = name, client
        self._bundle, self._special, self._timeout_s = bundle, special_tokens, timeout_s
        self.standing = Standing.UNPROVEN
        self.reason: str | None = "starting: no canary request has come back yet"
        """Why it is unproven or down; None elsewhere."""

        self.server: ServerInfo | None = None
        """Who answers, once known."""

        self.stats = EMPTY
        """The engine's account of itself, as of its last answer."""

        self.on_change: Callable[[], None] = lambda: None
        """Called whenever the standing changes."""

        self.rehearse: Callable[[ServerInfo], Awaitable[None]] = _nothing
        """Called when its canaries have come back, before it takes requests."""

        self._doubted = asyncio.Event()

    @property
    def usable(self) -> bool:
        """Whether requests may be sent there."""
        return self.standing in (Standing.READY, Standing.SUSPECT)

    def doubt(self, error: ServiceError) -> None:
        """A batch failed, or the connection was lost: prove again that the models answer."""
        self._doubted.set()
        if not self.usable:
            return
        if isinstance(error, Unavailable):
            self._stand(Standing.UNPROVEN, f"the connection was lost, and no canary has come back since: {error}")
        else:
            self._stand(Standing.SUSPECT, None)

    async def start(self) -> None:
        """Prepare the client. Raises BundleError where the models are loaded here and the bundle is damaged."""
        await self.client.start(on_lost=self.doubt)

    async def watch(self) -> None:
        """Check for ever."""
        while True:
            await self.check()
            await self._pause()

    async def check(self) -> None:
        """Prove that it answers, with the right bundle. Never raises: `reason` says what went wrong."""
        self._doubted.clear()
        before = self.standing
        proven = before is Standing.READY
        try:
            async with asyncio.timeout(self._timeout_s if proven else CANARY_TIMEOUT_S):
                server = await self.client.server()
                self._compare(server.bundle)
                if not proven:
                    await ask_every_task(self.client, self._special)
                    await self.rehearse(server)
                self.stats, self.server = await self.client.stats(), server
        except ServiceError as error:
            # A connection that is lost during a check may be there again at the next.
            lost = proven and self.standing is Standing.UNPROVEN
            self._stand(Standing.UNPROVEN if lost else Standing.DOWN, error.message)
        except TimeoutError:
            # A place that was sent requests may only be busy with them: they wait until a canary has told.
            busy = before in (Standing.READY, Standing.SUSPECT)
            self._stand(Standing.UNPROVEN if busy else Standing.DOWN, f"{self.name} did not answer in time")
        except Exception as error:
            # Whatever else: a watcher that ends in silence would leave its last word standing.
            log.exception("a readiness check failed", place=self.name)
            self._stand(Standing.DOWN, f"a readiness check of {self.name} failed: {error!r}")
        else:
            if not self._doubted.is_set():
                self._stand(Standing.READY, None)

    def _compare(self, served: BundleIdentity) -> None:
        if served.sha256 != self._bundle.sha256:
            raise Unavailable(
                f"{self.name} serves the bundle {served}, and the gateway has {self._bundle}: build the "
                "model repository from the gateway's bundle (trident repository build), or change TRIDENT_BUNDLE"
            )

    def _stand(self, standing: Standing, reason: str | None) -> None:
        before = (self.standing, self.reason)
        self.standing, self.reason = standing, reason
        if standing is Standing.DOWN:
            # Whatever held slots went with the engine.
            self.stats = EMPTY
        if before != (standing, reason):
            log.info("place", place=self.name, standing=standing.name.lower(), reason=reason)
            self.on_change()

    async def _pause(self) -> None:
        if self.standing is not Standing.READY:
            await asyncio.sleep(RETRY_INTERVAL_S)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL_S):
                await self._doubted.wait()


async def _nothing(_: ServerInfo) -> None:
    """What a place rehearses unless told otherwise."""
