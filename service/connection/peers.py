"""How many connections there are, in all and from each peer.

A peer is an IPv4 address, or the /64 network of an IPv6 address: a host has as many of those as it likes. Proxies speak
for many clients and are named in `limits.trusted_peers`: only the number in all holds for them.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from service.errors import TooManyConnections, TooManyFromPeer
from service.settings import LimitSettings

Peer = IPv4Address | IPv6Network


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
        peer = self._peer(host)
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

    def _peer(self, host: str | None) -> Peer | None:
        """None where no limit of its own holds: a proxy, or a socket that has no addresses."""
        if not host:
            return None
        address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        if any(address in network for network in self._limits.trusted_peers):
            return None
        return address if isinstance(address, IPv4Address) else IPv6Network((address, 64), strict=False)
