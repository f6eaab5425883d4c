"""`python -m service` with an engine whose steps take a while: what a test does while a text is written fits in."""

from __future__ import annotations

import time

from deploy.triton.engine import Engine
from service.__main__ import main

STEP_S = 0.004


def step_slowly(engine: Engine, step=Engine.step) -> bool:
    """The engine's own step, later."""
    time.sleep(STEP_S)
    return step(engine)


if __name__ == "__main__":
    Engine.step = step_slowly
    main()
