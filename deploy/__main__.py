"""The `mixray` command: set the environment, then run the command line."""

from deploy.environment import prepare_environment


def main() -> None:
    """Entry point."""
    prepare_environment()
    # Ray reads its authentication mode once, when it is imported: hence not at the top.
    from deploy.cli import app

    app()


if __name__ == "__main__":
    main()
