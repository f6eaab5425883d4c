"""Who may have how many connections."""

from __future__ import annotations

import resource

import pytest

from service.connection import descriptors
from service.connection.peers import Peers
from service.errors import TooManyConnections, TooManyFromPeer
from service.settings import LimitSettings


def peers(**limits: object) -> Peers:
    return Peers(LimitSettings(**limits))


@pytest.mark.parametrize(
    ("hosts", "fits"),
    [
        (["192.0.2.1", "192.0.2.1"], True),
        (["192.0.2.1"] * 3, False),
        (["192.0.2.1", "192.0.2.1", "192.0.2.2"], True),
        (["::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1"], False),
        (["2001:db8::1", "2001:db8::2", "2001:db8::3"], False),
        (["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1"], True),
        (["fe80::1%eth0", "fe80::2%eth0", "fe80::3%eth1"], False),
        (["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"] * 2, True),
        ([None, "", None], True),
    ],
)
def test_a_peer_has_a_limit_of_its_own(hosts: list[str | None], fits: bool) -> None:
    doors = peers(connections_per_peer=2)
    for host in hosts[:-1]:
        doors.enter(host)
    if fits:
        doors.enter(hosts[-1])
    else:
        with pytest.raises(TooManyFromPeer, match=r"2 connections are open from .*, and 2 is the limit: close some"):
            doors.enter(hosts[-1])


def test_all_have_one_together_and_whoever_leaves_makes_room() -> None:
    doors = peers(connections=2)
    first, _ = doors.enter("192.0.2.1"), doors.enter("127.0.0.1")
    with pytest.raises(TooManyConnections, match="2 connections are open, and 2 is the limit: try again later"):
        doors.enter("192.0.2.2")
    doors.leave(first)
    doors.enter("192.0.2.2")


def test_who_was_refused_is_not_counted() -> None:
    doors = peers(connections=3, connections_per_peer=1)
    first = doors.enter("192.0.2.1")
    for _ in range(5):
        with pytest.raises(TooManyFromPeer):
            doors.enter("192.0.2.1")
    doors.leave(first)
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        doors.enter(host)


def test_proxies_can_be_named() -> None:
    doors = peers(connections_per_peer=1, trusted_peers=["10.0.0.0/8"])
    for _ in range(3):
        doors.enter("10.1.2.3")
    doors.enter("127.0.0.1")
    with pytest.raises(TooManyFromPeer):
        doors.enter("127.0.0.1")


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        (1024, 1_000_000, 4096 + 64, 4096),
        (1024, 2000, 2000, 2000 - 64),
        (1024, resource.RLIM_INFINITY, 4096 + 64, 4096),
        (9000, 9000, None, 4096),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 4096),
        (40, 40, 40, 1),
    ],
)
def test_descriptors_bound_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None, connections: int
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert descriptors.within_descriptors(LimitSettings()).connections == connections
    assert asked == ([] if raised is None else [(raised, hard)])
