"""A small run for tests: two rounds of the machine, of mixray's engine and server, and a rival."""

from loadtest.bench.cells import LIMITS, LIMITS_NAME, TOKENS_PER_S, Cell, Kind
from loadtest.bench.floor import PRODUCTS, READ
from loadtest.bench.record import BenchRecord, Failure, Sample, Setting, Turn
from loadtest.bench.sizes import Size

SIZE = Size(
    name="toy",
    hidden=4,
    ffn=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    num_experts=4,
    vocab_size=10,
)


def cell(kind: Kind, batch: int = 2, prompt_tokens: int = 5, new_tokens: int = 4) -> Cell:
    return Cell(kind=kind, batch=batch, prompt_tokens=prompt_tokens, new_tokens=new_tokens)


DECODE, BURST, SERVER = cell("decode"), cell("burst"), cell("server")


def sample(number: int, contestant: str, of: Cell, rate: float, note: str = "") -> Sample:
    return Sample(
        round=number,
        contestant=contestant,
        cell=of.name,
        values={TOKENS_PER_S: [rate]},
        note=note,
    )


def limits(number: int, read: float, products: float) -> Sample:
    values = {READ: [read], PRODUCTS: [products]}
    return Sample(round=number, contestant=LIMITS_NAME, cell=LIMITS.name, values=values)


def small_record() -> BenchRecord:
    """The machine is twice as fast in round 2, and so is everybody but the rival."""
    setting = Setting(
        recorded_at="2026-11-24T22:00:00+00:00",
        commit="abc1234",
        hardware="a machine",
        command="python -m loadtest.bench",
        threads=2,
        size=SIZE,
        cells=(DECODE, BURST, SERVER),
        commands={"mixray-linked": "linked {job}", "mixray-http": "serve", "rival": "run {job}"},
        absent={"vllm": "no --vllm-python"},
    )
    record = BenchRecord(setting=setting, versions={"rival": {"rival": "1.0"}})
    # A decode step of two reads 1,488 bytes: floors of 1 and 2 tokens/s.
    record.samples.extend(
        [
            limits(1, 744.0, 1e9),
            limits(2, 1488.0, 1e9),
            sample(1, "mixray-linked", DECODE, 0.5),
            sample(2, "mixray-linked", DECODE, 1.0),
            sample(1, "mixray-linked", BURST, 4.0),
            sample(2, "mixray-linked", BURST, 8.0),
            sample(1, "mixray-http", SERVER, 3.0),
            sample(1, "rival", DECODE, 0.25, note="eager"),
        ]
    )
    record.turns.append(
        Turn(round=1, contestant="rival", seconds=3.0, memory_bytes=2_500_000_000, num_processes=1)
    )
    record.failures.append(
        Failure(round=2, contestant="rival", reason="ended with status 1", cell=BURST.name)
    )
    return record
