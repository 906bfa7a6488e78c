"""For all tests: the environment as `mixray` sets it, one torch thread, no thread left behind."""

import os
import threading
from collections import Counter
from collections.abc import Iterator

from deploy.environment import prepare_environment

prepare_environment()
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

OUR_THREADS = ("engine", "placement", "expert-server")


def our_threads() -> Counter[str]:
    """Living threads of mixray's own, by name."""
    names = (thread.name for thread in threading.enumerate())
    return Counter(name for name in names if name in OUR_THREADS)


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail a test after which an engine, a placement follower or an expert server still runs."""
    before = our_threads()
    yield
    assert our_threads() == before
