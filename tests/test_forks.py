"""The tests' own processes: ready at once, fresh, and clear about how they end."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tests.forks import IMPORTED, ROOT, Forks, completed
from tests.waiting import wait_until

FOREVER_S = 600


def run(source: str) -> None:
    """A task: Python's source."""
    exec(source)


def test_a_fork_has_what_is_slow_to_import_and_one_thread() -> None:
    with Forks(run, "import sys, psutil; print(psutil.Process().num_threads(), *sys.modules)") as process:
        threads, *modules = process.finish().split()
    assert threads == "1"
    assert set(IMPORTED) <= set(modules)


def test_forks_share_nothing() -> None:
    leaves = "import os, torch; os.environ['LEFT'] = '1'; torch.manual_seed(7); torch.LEFT = 1"
    finds = "import os, torch; print(os.environ.get('LEFT'), torch.initial_seed() == 7, hasattr(torch, 'LEFT'))"
    with Forks(run, leaves) as process:
        process.finish()
    with Forks(run, finds) as process:
        assert process.finish().split() == ["None", "False", "False"]


def test_several_find_their_ranks_and_the_tests_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_BY_A_TEST", "yes")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SET_BY_A_TEST")
    with Forks(run, f"import os; print(*(os.environ.get(name) for name in {names}))", size=3) as processes:
        assert processes.finish().splitlines() == [f"{rank} {rank} 3 yes" for rank in range(3)]
    with Forks(run, f"import os; print(*(os.environ.get(name) for name in {names}))") as process:
        assert process.finish().split() == ["None", "None", "None", "yes"]


@pytest.mark.parametrize(
    ("source", "status", "printed"),
    [
        ("print('said')", 0, "said\n"),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('in words')", 1, "in words\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_a_fork_ends_with_the_status_of_any_process(source: str, status: int, printed: str) -> None:
    with Forks(run, source) as process:
        assert process.communicate(FOREVER_S) == (printed, None)
        assert process.poll() == status


def test_streams_are_kept_apart_where_they_are_asked_for() -> None:
    source = "import sys; print('said'); print('told', file=sys.stderr); sys.exit(2)"
    answer = completed(run, source)
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "said\n", "told\n")


def leave_something_to_do() -> None:
    """A task that ends before all that it began."""
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.1), print("the thread"))).start()


def test_threads_and_exit_functions_are_waited_for() -> None:
    with Forks(leave_something_to_do) as process:
        assert process.finish() == "the thread\nat exit\n"


def fail_or_wait() -> None:
    """A task of which one process fails, and the others would wait for it."""
    if os.environ["RANK"] == "1":
        raise ValueError("rank 1 has had enough")
    time.sleep(FOREVER_S)


def test_where_one_fails_its_traceback_is_told_and_the_rest_are_ended() -> None:
    said = r"(?s)process 1 ended with status 1:.*in fail_or_wait.*had enough"
    with Forks(fail_or_wait, size=3) as processes:
        with pytest.raises(AssertionError, match=said) as told:
            processes.finish()
        assert [fork.status for fork in processes.each] == [-signal.SIGKILL, 1, -signal.SIGKILL]
    assert "process 0" not in str(told.value)


def hang() -> None:
    """A task that says when it hangs, and hangs."""
    print("hanging", flush=True)
    time.sleep(FOREVER_S)


def test_where_one_hangs_its_line_is_told() -> None:
    with Forks(hang) as process:
        wait_until(lambda: "hanging" in process.each[0].printed(), "the task's begin")
        with pytest.raises(AssertionError, match=r"(?s)not ended after 0.01 s.*test_forks\.py.*in hang"):
            process.finish(0.01)
        assert process.poll() == -signal.SIGABRT


def start_another() -> None:
    """A task with a process of its own."""
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER_S})"], start_new_session=True)
    time.sleep(FOREVER_S)


def test_killing_takes_what_was_started_too() -> None:
    with Forks(start_another) as process:
        own = psutil.Process(process.pid)
        wait_until(lambda: bool(own.children()), "a process of the task's own")
        (started,) = own.children()
    assert process.poll() == -signal.SIGKILL
    assert not started.is_running()


def test_nothing_outlives_tests_that_were_killed() -> None:
    source = """
import tests.forks
from tests.forks import Forks
from tests.test_forks import hang
tests.forks.IMPORTED = ()
process = Forks(hang, size=2)
print(*(fork.pid for fork in process.each), flush=True)
process.wait()
"""
    with subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        ranks = [psutil.Process(int(pid)) for pid in tests.stdout.readline().split()]
        keepers = [rank.parent() for rank in ranks]
        (server,) = {keeper.ppid() for keeper in keepers if keeper is not None}
        ended = [*ranks, *keepers, psutil.Process(server)]
        assert len(ended) == 5
        tests.kill()
    wait_until(lambda: not any(each.is_running() for each in ended if each is not None), "the end of all processes")


def test_imports_that_fail_are_told() -> None:
    source = "import tests.forks; tests.forks.IMPORTED = ('tests.no_such_module',); tests.forks.Forks(print)"
    command = [sys.executable, "-c", source]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "RuntimeError: the fork server ended while it imported:" in answer.stderr
    assert "No module named 'tests.no_such_module'" in answer.stderr
