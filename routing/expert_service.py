"""What an expert host does with requests, without any sockets.

Requests wait in order of arrival. One step takes the oldest one's layer, merges every waiting
request of that layer, whichever router it came from, into one pass over the experts' weights, and
answers each.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from routing.experts import ComputeRows
from routing.messages import (
    BAD_REQUEST,
    EXPIRED,
    INTERNAL,
    NOT_OWNER,
    ComputeReply,
    ComputeRequest,
    Refusal,
)
from routing.tensors import from_bytes, to_bytes

# Letters: R rows sorted by expert, D model dimension.

logger = logging.getLogger(__name__)

Answer = Callable[[ComputeReply | Refusal, memoryview | None], None]
"""Sends one message and its payload back to the router that asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSpec:
    """What a host computes.

    Attributes:
        compute_rows: the experts; a pure function.
        expert_ids: which experts are held at this moment.
    """

    compute_rows: ComputeRows
    expert_ids: Callable[[], tuple[int, ...]]
    num_layers: int
    dim: int
    dtype: str
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: ComputeRequest
    payload: memoryview
    answer: Answer
    expires_s: float


class ExpertService:
    """The queue and the merge. Mutable state: `_waiting`, and the counters."""

    def __init__(self, spec: ServiceSpec, now_s: Callable[[], float]) -> None:
        self._spec = spec
        self._now_s = now_s
        self._waiting: list[_Waiting] = []
        self.num_calls = 0
        self.num_merged = 0
        self.rows_by_expert: Counter[int] = Counter()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def submit(self, request: ComputeRequest, payload: memoryview, answer: Answer) -> None:
        """Queue a request, or refuse it at once."""
        refusal = self._refuse(request)
        if refusal is not None:
            answer(refusal, None)
            return
        expires_s = self._now_s() + request.deadline_ms / 1000
        self._waiting.append(_Waiting(request, payload, answer, expires_s))

    def step(self) -> None:
        """Compute and answer everything that waits for the oldest request's layer."""
        self._drop_expired()
        if not self._waiting:
            return
        layer = self._waiting[0].request.layer
        batch = [item for item in self._waiting if item.request.layer == layer]
        self._waiting = [item for item in self._waiting if item.request.layer != layer]
        self.num_calls += len(batch)
        self.num_merged += len(batch) - 1
        self._serve(layer, batch)

    def _serve(self, layer: int, batch: list[_Waiting]) -> None:
        """Answer the batch; if it fails, each of its requests alone, to spare the innocent."""
        try:
            outputs = self._compute(layer, batch)
        except Exception:
            if len(batch) > 1:
                for item in batch:
                    self._serve(layer, [item])
            else:
                self._answer_failure(batch[0])
            return
        for item, output_RD in zip(batch, outputs, strict=True):
            request = item.request
            self.rows_by_expert.update(dict(request.rows))
            reply = ComputeReply(request.seq, request.dtype, request.dim, len(output_RD))
            item.answer(reply, to_bytes(output_RD))

    def _answer_failure(self, item: _Waiting) -> None:
        """Say that an expert was handed away between submit and step, or that we failed."""
        refusal = self._refuse(item.request)
        if refusal is None:
            logger.exception("layer=%d: computation failed", item.request.layer)
            refusal = Refusal(item.request.seq, INTERNAL, "computation failed")
        item.answer(refusal, None)

    def _refuse(self, request: ComputeRequest) -> Refusal | None:
        spec = self._spec
        if request.layer >= spec.num_layers or request.dim != spec.dim:
            return Refusal(
                request.seq,
                BAD_REQUEST,
                f"got layer {request.layer}, dimension {request.dim}; "
                f"want a layer below {spec.num_layers}, dimension {spec.dim}",
            )
        if request.dtype != spec.dtype:
            return Refusal(request.seq, BAD_REQUEST, f"got {request.dtype}, want {spec.dtype}")
        missing = {expert_id for expert_id, _ in request.rows} - set(spec.expert_ids())
        if missing:
            return Refusal(request.seq, NOT_OWNER, f"expert {min(missing)} is not held here")
        return None

    def _drop_expired(self) -> None:
        now_s = self._now_s()
        expired = [item for item in self._waiting if item.expires_s <= now_s]
        self._waiting = [item for item in self._waiting if item.expires_s > now_s]
        for item in expired:
            item.answer(Refusal(item.request.seq, EXPIRED, "the deadline has passed"), None)

    def _compute(self, layer: int, batch: list[_Waiting]) -> list[Tensor]:
        """Merge the batch's rows by expert, compute, and part them again."""
        spec = self._spec
        arrived = [from_bytes(item.payload, spec.dtype, spec.dim) for item in batch]
        pieces = sorted(_pieces(batch), key=lambda piece: piece.expert_id)
        x_RD = torch.cat([arrived[piece.item][piece.first : piece.end] for piece in pieces])
        y_RD = spec.compute_rows(layer, x_RD.to(spec.device), _slices(pieces)).cpu()
        parts: list[list[tuple[int, Tensor]]] = [[] for _ in batch]
        sizes = [piece.end - piece.first for piece in pieces]
        for piece, part_RD in zip(pieces, torch.split(y_RD, sizes), strict=True):
            parts[piece.item].append((piece.first, part_RD))
        return [torch.cat([part_RD for _, part_RD in sorted(own, key=_first)]) for own in parts]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows `first` to `end` of one waiting item: those for one expert."""

    expert_id: int
    item: int
    first: int
    end: int


def _pieces(batch: list[_Waiting]) -> Iterator[_Piece]:
    for number, item in enumerate(batch):
        first = 0
        for expert_id, num_rows in item.request.rows:
            yield _Piece(expert_id, number, first, first + num_rows)
            first += num_rows


def _slices(pieces: list[_Piece]) -> dict[int, tuple[int, int]]:
    """Where each expert's rows lie once the pieces, sorted by expert, stand in a row."""
    slices: dict[int, tuple[int, int]] = {}
    end = 0
    for piece in pieces:
        first, end = end, end + piece.end - piece.first
        slices[piece.expert_id] = (slices.get(piece.expert_id, (first, first))[0], end)
    return slices


def _first(part: tuple[int, Tensor]) -> int:
    return part[0]
