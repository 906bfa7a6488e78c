"""What is measured, as data: every contestant gets the same cells, by the same words.

A job travels to a contestant's process as one JSON argument, so that those which know nothing of
mixray can read it too.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from loadtest.bench.sizes import Size

Kind = Literal["limits", "decode", "prefill", "burst", "server"]
KINDS: tuple[Kind, ...] = ("decode", "prefill", "burst", "server")

LIMITS_NAME = "limits"

TOKENS_PER_S = "tokens_per_s"
TTFT_S = "ttft_s"
ITL_S = "itl_s"

DECODE_BATCHES = (1, 4, 16)
AT_ONCE: tuple[Kind, ...] = ("burst", "server")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One figure of the table.

    A burst is what a server is asked, without the server: streams that come all at once, straight
    into an engine.

    Attributes:
        batch: sequences, or streams, at once.
        repeats: how often one contestant measures it in one round.
    """

    kind: Kind
    batch: int
    prompt_tokens: int
    new_tokens: int
    repeats: int = 1

    @property
    def name(self) -> str:
        """Short, unique among the cells of a run."""
        number = self.prompt_tokens if self.kind == "prefill" else self.batch
        return LIMITS_NAME if self.kind == "limits" else f"{self.kind}-{number}"

    @property
    def workload(self) -> tuple[int, int, int]:
        """How many, how long, how much: equal for cells that ask for the same in two ways."""
        return self.batch, self.prompt_tokens, self.new_tokens

    @property
    def title(self) -> str:
        """For the head of a column."""
        if self.kind == "decode":
            return f"decode B={self.batch}"
        if self.kind == "prefill":
            return f"prefill {self.prompt_tokens}"
        where = "HTTP" if self.kind == "server" else "engine"
        return f"{where}, {self.batch} streams, {self.prompt_tokens} in, {self.new_tokens} out"


LIMITS = Cell(kind="limits", batch=1, prompt_tokens=1, new_tokens=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a contestant's process is to do.

    Attributes:
        model: checkpoint folder or file.
        seed: of random prompts; another one in each round.
        num_hosts, router_threads, host_threads: of mixray with expert hosts.
    """

    model: str
    cells: tuple[Cell, ...]
    seed: int
    threads: int
    num_hosts: int = 0
    router_threads: int = 0
    host_threads: int = 0

    def to_json(self) -> str:
        """Write it for an argument; each cell with its name."""
        data = asdict(self)
        data["cells"] = [{**asdict(cell), "name": cell.name} for cell in self.cells]
        return json.dumps(data)

    @staticmethod
    def from_json(text: str) -> "Job":
        """Read what `to_json` wrote."""
        data = json.loads(text)
        cells = tuple(_cell(each) for each in data.pop("cells"))
        return Job(cells=cells, **data)


def _cell(data: dict[str, object]) -> Cell:
    return Cell(**{key: value for key, value in data.items() if key != "name"})  # type: ignore[arg-type]


def cells_of(size: Size, kinds: Sequence[Kind]) -> tuple[Cell, ...]:
    """Give the cells of these kinds for a model of this size."""
    decode = tuple(
        Cell(kind="decode", batch=batch, prompt_tokens=16, new_tokens=size.decode_tokens)
        for batch in DECODE_BATCHES
    )
    prefill = Cell(kind="prefill", batch=1, prompt_tokens=512, new_tokens=1, repeats=3)
    at_once = tuple(Cell(kind=kind, batch=16, prompt_tokens=128, new_tokens=64) for kind in AT_ONCE)
    return tuple(cell for cell in (*decode, prefill, *at_once) if cell.kind in kinds)
