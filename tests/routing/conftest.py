"""After every test of this room the ledger is zero: no descriptor, no thread is left."""

import os
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("routing", deadline=None, database=None)
settings.load_profile("routing")


def open_descriptors() -> Counter[str]:
    """Sockets, pipes and selectors of this process, by kind."""
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor that lists the folder
            continue
        kind = target.split(":")[0]
        if kind in ("socket", "pipe") or "eventpoll" in target:
            kinds[kind] += 1
    return kinds


@pytest.fixture(autouse=True)
def ledger() -> Iterator[None]:
    """Fail a test that leaves a socket, a pipe, a selector or a thread behind."""
    descriptors, num_threads = open_descriptors(), threading.active_count()
    yield
    assert open_descriptors() == descriptors
    assert threading.active_count() == num_threads
