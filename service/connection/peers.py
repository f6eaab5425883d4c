"""How many connections there are, in all and from each peer. For proxies only the number in all holds."""

from __future__ import annotations

from collections import Counter

from service.addresses import Peer, peer_of
from service.errors import TooManyConnections, TooManyFromPeer
from service.settings import LimitSettings


class Peers:
    """The connections of one listening socket."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._open = 0
        self._of_peer: Counter[Peer] = Counter()

    def enter(self, host: str | None) -> Peer | None:
        """Count a connection from a numeric address; what is returned is to be given to `leave`.

        Raises TooManyConnections or TooManyFromPeer.
        """
        if self._open >= self._limits.connections:
            raise TooManyConnections(
                f"{self._open} connections are open, and {self._limits.connections} is the limit: try again later"
            )
        peer = peer_of(host, self._limits.trusted_peers)
        if peer is not None:
            if self._of_peer[peer] >= self._limits.connections_per_peer:
                raise TooManyFromPeer(
                    f"{self._of_peer[peer]} connections are open from {peer}, and {self._limits.connections_per_peer} "
                    "is the limit: close some, or keep and reuse them"
                )
            self._of_peer[peer] += 1
        self._open += 1
        return peer

    def leave(self, peer: Peer | None) -> None:
        """A counted connection is closed."""
        self._open -= 1
        if peer is not None:
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]
