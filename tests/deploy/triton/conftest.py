"""Engines on the nano bundle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings


@pytest.fixture(scope="module")
def module_engine(nano_bundle: Path) -> Engine:
    return Engine(nano_bundle, EngineSettings(threads=1))


@pytest.fixture
def engine(module_engine: Engine) -> Iterator[Engine]:
    """An idle engine with 32 slots, which must be idle again afterwards."""
    yield module_engine
    stats = module_engine.stats
    assert (stats.slots_used, stats.waiting_rows) == (0, 0)
    assert not module_engine.step()


@pytest.fixture
def running_engine(nano_bundle: Path) -> Iterator[Engine]:
    """An engine that steps in a thread of its own, and holds nothing when it has ended."""
    engine = Engine(nano_bundle, EngineSettings(slots=8, threads=1, verify=False))
    thread = threading.Thread(target=engine.run)
    thread.start()
    yield engine
    engine.close()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert (engine.failure, engine.stats.slots_used, engine.stats.waiting_rows) == (None, 0, 0)
