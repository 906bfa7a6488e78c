"""The `mixray` command: set the environment, then run the command line."""

import signal
import sys

from deploy.environment import prepare_environment


def main() -> None:
    """Entry point; a SIGTERM ends it as Ctrl-C does."""
    prepare_environment()
    # Ray reads its authentication mode once, when it is imported: hence not at the top.
    from deploy.cli import app

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app()


if __name__ == "__main__":
    main()
