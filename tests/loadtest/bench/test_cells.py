from loadtest.bench.cells import KINDS, LIMITS, Job, cells_of
from loadtest.bench.sizes import SIZES
from tests.loadtest.bench.records import BURST, DECODE, SERVER, cell


def test_names_are_unique_among_the_cells_of_a_run() -> None:
    names = [each.name for each in cells_of(SIZES["mid"], KINDS)]

    assert names == ["decode-1", "decode-4", "decode-16", "prefill-512", "burst-16", "server-16"]
    assert LIMITS.name == "limits"


def test_only_the_kinds_asked_for_are_measured() -> None:
    cells = cells_of(SIZES["mid"], ["prefill", "server"])

    assert [each.kind for each in cells] == ["prefill", "server"]


def test_a_decode_cell_is_as_long_as_the_model_allows() -> None:
    [mid, *_], [real2, *_] = (cells_of(SIZES[name], ["decode"]) for name in ("mid", "real2"))

    assert (mid.new_tokens, real2.new_tokens) == (64, 32)


def test_a_burst_asks_for_what_a_server_is_asked() -> None:
    assert BURST.workload == SERVER.workload
    assert BURST.name != SERVER.name


def test_titles_say_what_is_counted() -> None:
    assert DECODE.title == "decode B=2"
    assert cell("prefill").title == "prefill 5"
    assert SERVER.title == "HTTP, 2 streams, 5 in, 4 out"
    assert BURST.title == "engine, 2 streams, 5 in, 4 out"


def test_a_job_survives_the_way_to_another_process() -> None:
    job = Job(model="m", cells=(DECODE, BURST), seed=3, threads=2, num_hosts=2, router_threads=1)

    assert Job.from_json(job.to_json()) == job
