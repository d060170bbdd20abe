"""Entry point: light verbs answer without importing torch, the rest go to the Lightning CLI."""

import sys


def main(args: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    args = sys.argv[1:] if args is None else args
    if args and args[0] == "catalogue":
        from erasus_pl.commands.catalogue import main as catalogue

        return catalogue(args[1:])
    from erasus_pl.cli import run

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
