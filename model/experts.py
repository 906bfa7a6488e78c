"""The experts that one process holds, and their computation on rows sorted by expert."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from torch import Tensor

from model.checkpoint.load import Checkpoint, Progress
from model.feed_forward import SwiGLU, compute_networks, swiglu

# Letters: R rows sorted by expert, D model dimension.


class ExpertShard:
    """Any subset of a model's experts, each in every layer.

    Experts may be added and removed by one thread while another computes: each is one entry of
    a dictionary, put in place whole.
    """

    def __init__(self) -> None:
        self._networks: dict[int, list[SwiGLU]] = {}

    @property
    def expert_ids(self) -> tuple[int, ...]:
        """The logical experts held, ascending."""
        return tuple(sorted(self._networks))

    def add(self, expert_id: int, networks: Iterable[SwiGLU]) -> None:
        """Hold an expert as soon as the last of its networks, in order of layers, is there."""
        self._networks[expert_id] = list(networks)

    def remove(self, expert_ids: Iterable[int]) -> None:
        """Drop experts in every layer."""
        for expert_id in expert_ids:
            self._networks.pop(expert_id, None)

    def compute_rows(
        self, layer: int, x_RD: Tensor, slices: Mapping[int, tuple[int, int]]
    ) -> Tensor:
        """Run each expert on its slice of rows.

        Raises:
            KeyError: an expert is not held here.
        """
        held = self._networks
        shares = ((held[id_][layer], first, end) for id_, (first, end) in slices.items())
        return compute_networks(x_RD, shares)


def load_experts(
    checkpoint: Checkpoint,
    expert_ids: Iterable[int],
    dtype: str,
    device: str = "cpu",
    tile_rows: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, list[SwiGLU]]]:
    """Prepare experts one after another; gives each with its networks in order of layers.

    Of the stored weights no more than one network's are in memory at a time.

    Args:
        tile_rows: as for `swiglu`.
        progress: told the stored bytes done and in all, after each network.
    """
    ids, num_layers = sorted(expert_ids), checkpoint.config.num_layers
    groups = [_network_names(layer, expert_id) for expert_id in ids for layer in range(num_layers)]
    networks = checkpoint.build(
        lambda weights: swiglu(*weights.values(), tile_rows=tile_rows),
        groups,
        dtype,
        device,
        progress,
    )
    for expert_id in ids:
        yield expert_id, list(islice(networks, num_layers))


def networks_of(
    weights: Mapping[str, Tensor], num_layers: int, expert_id: int, tile_rows: int | None = None
) -> Iterator[SwiGLU]:
    """Prepare one expert's networks, in order of layers, of weights by our names."""
    for layer in range(num_layers):
        names = _network_names(layer, expert_id)
        yield swiglu(*(weights[name] for name in names), tile_rows=tile_rows)


def _network_names(layer: int, expert_id: int) -> list[str]:
    """Give our names of one network's matrices, in the order that `swiglu` takes them."""
    return [f"layers.{layer}.experts.{expert_id}.{name}.weight" for name in ("w1", "w2", "w3")]
