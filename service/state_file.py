"""What a service has learnt, kept between its runs in one JSON file for each thing it was learnt about.

Losing it costs a calibration, so nothing here ever fails: what cannot be read is left alone, what cannot be written is
told once.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)

VERSION = 1
MOST_BYTES = 4 << 20
"""A file that is longer is not one of ours."""


class StateFile:
    """One file: the state of whatever `key` says."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._key = dict(key)
        digest = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"predictions-{digest[:16]}.json"
        self._told = False

    def read(self) -> tuple[dict[str, Any], float] | None:
        """The state, and how many seconds ago it was written; None where there is none that can be used."""
        try:
            if self.path.stat().st_size > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes")
            kept = json.loads(self.path.read_bytes())
            if kept["version"] != VERSION or kept["key"] != self._key:
                raise ValueError("it is of another version, bundle or machine")
            return dict(kept["state"]), max(0.0, time.time() - float(kept["written_s"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.distrust(error)
            return None

    def distrust(self, error: Exception) -> None:
        """What was read is of no use."""
        log.warning("what an earlier run has learnt is not used", file=str(self.path), reason=repr(error))

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file as a whole."""
        text = json.dumps({"version": VERSION, "key": self._key, "written_s": time.time(), "state": state})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.stem)
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(text)
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink()
                raise
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning(
                    "what is learnt cannot be kept: name another folder in TRIDENT_STATE__FOLDER, or set "
                    "TRIDENT_STATE__KEEP=false",
                    file=str(self.path),
                    reason=str(error),
                )


def machine() -> str:
    """The processor's model and how many of its cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(named, platform.processor() or platform.machine())}, {cores} cores"
