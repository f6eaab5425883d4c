"""The folder of a run: what was made, what was left out, what is left to do, and what the run was asked for.

`run.json` holds the command and a digest of its files and settings: another command is refused, not mixed in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FINISH = "9-finish"
"""Every pipeline's last stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Where a run keeps things."""

    root: Path

    @property
    def corpora(self) -> Path:
        """What the run is for: corpora in the layout that `trident data prepare` takes."""
        return self.root / "corpora"

    @property
    def dropped(self) -> Path:
        """What was left out, by stage and rule."""
        return self.root / "dropped"

    @property
    def counts(self) -> Path:
        """Documents read and written, by task."""
        return self.root / "counts"

    @property
    def is_complete(self) -> bool:
        """Whether the last stage has run."""
        return (self.log(FINISH) / "completions" / "00000").is_file()

    @property
    def work(self) -> Path:
        """What only the run itself needs; gone when it is complete."""
        return self.root / "work"

    def log(self, stage: str) -> Path:
        """datatrove's logs, statistics and completions of a stage."""
        return self.root / "logs" / stage

    def progress(self, stage: str) -> Path:
        """How far each running task is."""
        return self.work / "progress" / stage

    def claim(self, command: str, digest: str) -> None:
        """Note what this folder is made by, or check that it is the same.

        Raises ValueError where the folder holds another run, or something that is no run.
        """
        note = self.root / "run.json"
        mine = {"command": command, "digest": digest}
        if note.is_file():
            held = json.loads(note.read_text(encoding="utf-8"))
            if held != mine:
                raise ValueError(
                    f"{self.root} holds a run of `trident data {held.get('command')}` with other files or settings; "
                    "choose another --output, or delete it"
                )
            return
        if self.root.is_dir() and any(self.root.iterdir()):
            raise ValueError(f"{self.root} is not empty and was not made by `trident data {command}`")
        self.root.mkdir(parents=True, exist_ok=True)
        unfinished = note.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(mine) + "\n", encoding="utf-8")
        unfinished.replace(note)
