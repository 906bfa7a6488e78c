"""What Ray reads from the environment. The only file that touches it; imports nothing."""

import os


def prepare_environment() -> None:
    """Turn token authentication on and usage reports off, unless the user chose otherwise.

    Must run before Ray is imported.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
