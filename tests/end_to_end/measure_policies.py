"""Batching policies on the real stack, in turns at each load, and each beside its simulation.

    python -m tests.end_to_end.measure_policies --trace TRACE.csv --output docs/results/policies/real.json

Starts a `trident serve` for each policy, all at once: those whose turn it is not have nothing to do.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from deploy.commands.live_policies import live_comparison, run_live
from tests.end_to_end.conftest import start_service, stop_service


def main() -> None:
    """Start, replay, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--policies", nargs="+", default=["predictive", "dynamic", "batch_first", "immediate"])
    parser.add_argument("--loads", default="0.5,0.8,1,1.2,1.5")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--arrivals", default="trace")
    parser.add_argument("--cap", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        urls = []
        for policy in arguments.policies:
            own = Path(folder, policy)
            own.mkdir()
            service = start_service(
                own,
                "--repository",
                f"{folder}/repository",
                TRIDENT_BATCHING__POLICY=policy,
                # What another run has learnt on this machine would be an advantage.
                TRIDENT_STATE__KEEP="false",
            )
            stack.callback(stop_service, service)
            urls.append(f"{policy}={service.url}")
        comparison = live_comparison(
            arguments.trace,
            urls,
            loads=arguments.loads,
            arrivals=arguments.arrivals,
            cap=arguments.cap,
            requests=arguments.requests,
            seed=0,
        )
        run_live(comparison, output=arguments.output, as_json=False)


if __name__ == "__main__":
    main()
