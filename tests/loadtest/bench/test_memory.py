from pathlib import Path

import pytest

from loadtest.bench.memory import Memory, Process, kill_left, memory_of, processes_below


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """1 started 2 and 3, 2 started 4; 5 is a stranger, 6 a zombie of 1."""
    for pid, parent, state in (
        (1, 0, "S"),
        (2, 1, "S"),
        (3, 1, "R"),
        (4, 2, "S"),
        (5, 0, "S"),
        (6, 1, "Z"),
    ):
        folder = tmp_path / str(pid)
        folder.mkdir()
        # Fields 3 (state), 4 (parent) and 22 (start); a name may hold spaces and brackets.
        rest = [state, str(parent), *["0"] * 17, f"10{pid}"]
        (folder / "stat").write_text(f"{pid} (a ) b) {' '.join(rest)}\n")
        (folder / "status").write_text(f"Name:\ta\nVmHWM:\t    {pid} kB\n")
        (folder / "smaps_rollup").write_text(f"00-ff ---p\nRss: 9 kB\nPss:      {10 * pid} kB\n")
    (tmp_path / "self").mkdir()
    return tmp_path


def test_a_process_and_all_below_it_are_found_but_no_zombie(proc: Path) -> None:
    first, *below = processes_below(1, proc)

    assert first == Process(1, "101")
    assert sorted(each.pid for each in below) == [2, 3, 4]


def test_a_process_that_is_gone_has_nobody_below_it(proc: Path) -> None:
    assert processes_below(99, proc) == []


def test_the_peak_of_one_process_is_compared(proc: Path) -> None:
    memory = memory_of(processes_below(3, proc), proc)

    assert memory == Memory(num_processes=1, peak_rss_bytes=3 * 1024, pss_bytes=30 * 1024)
    assert memory.taken_bytes == 3 * 1024


def test_of_several_processes_it_is_the_proportional_size(proc: Path) -> None:
    memory = memory_of(processes_below(2, proc), proc)

    assert (memory.num_processes, memory.taken_bytes) == (2, (20 + 40) * 1024)


def test_who_ended_meanwhile_takes_nothing(proc: Path) -> None:
    memory = memory_of([Process(3, "103"), Process(99, "1")], proc)

    assert memory.peak_rss_bytes == 3 * 1024


def test_a_number_that_is_used_again_is_not_killed(proc: Path) -> None:
    assert kill_left([Process(3, "before"), Process(99, "199")], proc) == 0
