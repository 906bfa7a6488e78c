"""Real processes: small Python programs that end at once when they are told to."""

import sys
from pathlib import Path

import pytest

from loadtest.bench.child import Child, ContestantFailed

LONG_S = 20.0


def child(code: str, folder: Path, timeout_s: float = LONG_S) -> Child:
    command = [sys.executable, "-c", code]
    return Child(command, folder, folder / "log", timeout_s)


def is_running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_lines_come_one_by_one_and_each_waits_for_an_answer(tmp_path: Path) -> None:
    code = "for n in range(3): print(n, flush=True); input()"

    with child(code, tmp_path) as process:
        heard = []
        for line in process.lines():
            heard.append(line.strip())
            process.go_on()

    assert heard == ["0", "1", "2"]


def test_standard_error_goes_to_the_log(tmp_path: Path) -> None:
    with child("import sys; print('why', file=sys.stderr)", tmp_path) as process:
        assert list(process.lines()) == []

    assert (tmp_path / "log").read_text() == "why\n"


def test_a_process_that_ends_with_a_fault_has_failed(tmp_path: Path) -> None:
    with child("exit(3)", tmp_path) as process, pytest.raises(ContestantFailed, match="status 3"):
        list(process.lines())


def test_a_process_that_says_nothing_in_time_has_failed_and_is_ended(tmp_path: Path) -> None:
    code = "import os; print(os.getpid(), flush=True); input(); input()"

    with child(code, tmp_path, timeout_s=1.0) as process:
        lines = process.lines()
        pid = int(next(lines))
        with pytest.raises(ContestantFailed, match="took longer than 1 s"):
            next(lines)

    assert not is_running(pid)


def test_waiting_ends_when_the_process_does(tmp_path: Path) -> None:
    with child("", tmp_path) as process, pytest.raises(ContestantFailed, match="ended early"):
        process.wait_until(lambda: False, period_s=0.01)


def test_waiting_ends_when_it_holds(tmp_path: Path) -> None:
    looks = iter([False, False, True])

    with child("input()", tmp_path) as process:
        process.wait_until(lambda: next(looks), period_s=0.01)

    assert list(looks) == []


def test_what_a_process_started_in_a_session_of_its_own_is_ended_too(tmp_path: Path) -> None:
    code = (
        "import subprocess as s, sys;"
        "p = s.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=1);"
        "print(p.pid, flush=True); input(); input()"
    )

    with child(code, tmp_path) as process:
        pid = int(next(process.lines()))
        num_processes = process.memory().num_processes
        assert is_running(pid)

    assert num_processes == 2
    assert not is_running(pid)


def test_a_process_is_ended_when_the_block_is_left_by_a_fault(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), child("input(); input()", tmp_path) as process:
        [running] = process._look()
        raise KeyboardInterrupt

    assert not is_running(running.pid)


def test_memory_is_that_of_the_process(tmp_path: Path) -> None:
    with child("x = bytearray(64 << 20); print(flush=True); input()", tmp_path) as process:
        next(process.lines())
        memory = process.memory()

    assert memory.num_processes == 1
    assert memory.taken_bytes > 64 << 20
