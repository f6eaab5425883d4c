"""File descriptors for connections: each takes one, and shells and systemd often allow a process 1,024."""

from __future__ import annotations

import resource

import structlog

from service.settings import LimitSettings

log = structlog.get_logger(__name__)

OWN = 64
"""For the process itself: an idle gateway has 20 to 30 open."""


def within_descriptors(limits: LimitSettings) -> LimitSettings:
    """The limits, with no more connections than this process may have descriptors for; asks for as many as needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + OWN
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    connections = max(1, soft - OWN)
    log.warning(
        "fewer connections than limits.connections: raise the limit of open files (ulimit -n)",
        open_files=soft,
        connections=connections,
    )
    return limits.model_copy(update={"connections": connections})
