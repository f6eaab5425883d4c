"""Ports for servers under test."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A TCP port that nothing listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
