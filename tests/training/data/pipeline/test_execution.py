"""Executors: Slurm jobs in the right order, one run a folder, and workers that die with a message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datatrove.pipeline.base import PipelineStep

from tests.training.data.pipeline.prose import english, write_texts
from training.data.pipeline.execution import RunFolder, Stage, run_stages
from training.data.pipeline.filtering import filter_corpora
from training.data.pipeline.report import read_report
from training.data.pipeline.settings import ExecutorSettings, load_settings

SBATCH = """#!/bin/sh
# Runs every task of the array at once, as a cluster with one node would.
for last; do :; done
script=$last
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
[ -n "$tasks" ] || { echo "Submitted batch job 0"; exit 0; }
echo "$@" >> "$SBATCH_LOG"
for task in $(seq 0 "$tasks"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=1 RUN_OFFSET=0 SLURM_NODELIST=node1 \\
        sh "$script" > /dev/null 2>> "$SBATCH_LOG.err" || exit 1
done
echo "Submitted batch job $(wc -l < "$SBATCH_LOG")"
"""
SCONTROL = """#!/bin/sh
echo "$3"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done
exec "$@"
"""


class Touch(PipelineStep):
    """Marks that a task ran; one of them dies."""

    type, name = "TEST", "touch"

    def __init__(self, folder: Path, dies: int = -1) -> None:
        super().__init__()
        self.folder, self.dies = folder, dies

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        if rank == self.dies:
            os._exit(9)
        (self.folder / str(rank)).touch()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    (tmp_path / "done").mkdir()
    return RunFolder(root=tmp_path / "run")


def test_a_worker_that_is_killed_is_told_and_not_waited_for(folder: RunFolder, tmp_path: Path) -> None:
    stage = Stage(name="s", tasks=3, steps=[Touch(tmp_path / "done", dies=1)])
    with pytest.raises(ValueError, match=r"a worker process was killed.*try fewer workers"):
        run_stages([stage], folder, ExecutorSettings(workers=2))
    run_stages([Stage(name="s", tasks=3, steps=[Touch(tmp_path / "done")])], folder, ExecutorSettings(workers=2))
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["0", "1", "2"]


def test_two_runs_in_one_folder_are_refused(folder: RunFolder) -> None:
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True);"
        "time.sleep(60)"
    )
    lock = str(folder.root / "run.lock")
    with subprocess.Popen([sys.executable, "-c", holder, lock], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is at work"):
            run_stages([], folder, ExecutorSettings())
        process.kill()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`sbatch` and `srun` that run jobs here; returns the log of submissions."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[4]))
    monkeypatch.setenv("SBATCH_LOG", str(tmp_path / "submitted"))
    return tmp_path / "submitted"


@pytest.mark.slow
def test_slurm_runs_the_stages_one_after_the_other(cluster: Path, tmp_path: Path) -> None:
    """On a stand-in for `sbatch` that runs the launch script of datatrove's executor; no cluster was at hand."""
    write_texts(tmp_path / "in/a.jsonl", [english(0), english(1), english(1)])
    write_texts(tmp_path / "in/b.jsonl", [english(0), english(2)])
    settings = load_settings(None, workers=1)
    settings.executor = ExecutorSettings(kind="slurm", slurm_partition="cpu")
    settings.filter.buckets = 2
    assert filter_corpora(tmp_path / "in", tmp_path / "out", settings) is None
    submitted = [line for line in cluster.read_text().splitlines() if "RUN_OFFSET" in line]  # not the statistics' jobs
    assert len(submitted) == 6
    assert ["--dependency=afterok" in line for line in submitted] == [False] + [True] * 5
    report = read_report(tmp_path / "out")
    assert (report.read, report.written) == (5, 3)


@pytest.mark.slow
def test_ray_writes_what_processes_write(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    write_texts(tmp_path / "in/a.jsonl", [english(0), english(1), english(1)])
    write_texts(tmp_path / "in/b.jsonl", [english(0), english(2)])
    made = []
    for kind in ("local", "ray"):
        settings = load_settings(None, workers=2)
        settings.executor = ExecutorSettings(kind=kind, ray_address="local", memory_gb=1)
        filter_corpora(tmp_path / "in", tmp_path / kind, settings)
        root = tmp_path / kind / "corpora"
        made.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*.bz2")})
    assert made[0] == made[1]
