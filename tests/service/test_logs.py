"""What goes into the log, and what does not."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.end_to_end.conftest import ROOT

PROGRAM = """
import structlog
from service.logs import configure_logging

def answer(text):
    raise KeyError("no")

configure_logging("info")
try:
    answer("what a client wrote")
except KeyError:
    structlog.get_logger("service").exception("a request failed")
"""


def test_an_exception_is_logged_with_its_place_and_without_what_clients_wrote() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    event = json.loads(result.stderr)
    assert event["exception"][0]["exc_type"] == "KeyError"
    assert event["exception"][0]["frames"][-1]["name"] == "answer"
    assert "what a client wrote" not in result.stderr
