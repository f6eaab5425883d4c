"""Engines on the nano bundle."""

from __future__ import annotations

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
