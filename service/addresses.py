"""Whom a connection or a request counts for: the peer, as far as its address tells.

A peer is an IPv4 address, or the /64 network of an IPv6 address: a host has as many of those as it likes. Proxies speak
for many clients and are named in `limits.trusted_peers`: no limit of a peer holds for them.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Peer = IPv4Address | IPv6Network


def peer_of(host: str | None, trusted: Collection[IPv4Network | IPv6Network]) -> Peer | None:
    """The peer at a numeric address.

    None where no limit of its own holds: a proxy, a socket that has no addresses, or what a proxy calls its client
    where that is no address.
    """
    if not host:
        return None
    try:
        address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if any(address in network for network in trusted):
        return None
    return address if isinstance(address, IPv4Address) else IPv6Network((address, 64), strict=False)
