"""What can go wrong between a request and the processes that serve it.

ClusterError
    EngineBusy         the queue is full; try again later
    RequestTooLarge    the request could never fit into the KV cache
    NotReady           no token can be served at present
    RequestFailed      an internal fault ended this request and no other
    EngineStopped      the engine was shut down

Each error is made from its own arguments alone, so that it survives the trip through Ray.
"""


class ClusterError(Exception):
    """Root of this room's errors."""


class EngineBusy(ClusterError):
    """The queue is full."""

    def __init__(self, num_waiting: int, retry_after_s: float = 1.0) -> None:
        super().__init__(num_waiting, retry_after_s)
        self.num_waiting = num_waiting
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.num_waiting} requests are waiting already"


class RequestTooLarge(ClusterError):
    """Prompt and answer together need more KV cache than there is."""

    def __init__(self, num_tokens: int, limit_tokens: int) -> None:
        super().__init__(num_tokens, limit_tokens)
        self.num_tokens = num_tokens
        self.limit_tokens = limit_tokens

    def __str__(self) -> str:
        return (
            f"prompt and max_tokens together are {self.num_tokens} tokens; "
            f"at most {self.limit_tokens} fit"
        )


class NotReady(ClusterError):
    """No token can be served at present; the message says why."""


class RequestFailed(ClusterError):
    """An internal fault ended this request and no other; details are in the router's log."""


class EngineStopped(ClusterError):
    """The engine was shut down while the request ran."""
