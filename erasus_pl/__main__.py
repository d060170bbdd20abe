"""Entry point: light verbs answer without importing torch, the rest go to the Lightning CLI."""

from __future__ import annotations

import io
import sys
from importlib import import_module

from erasus_pl import __version__
from erasus_pl._words import complain, did_you_mean

__all__ = ["VERBS", "main"]

VERBS = {
    "fit": "unlearn as a run file says, or train a task; ends with the report",
    "validate": "measure a checkpoint on the forget, retain, test and holdout set",
    "test": "the same, at the end",
    "predict": "write the outputs of a checkpoint on those sets to a file",
    "evaluate": "hold a checkpoint against original and retrained, write the report anew",
    "catalogue": "list strategies, selectors, attacks, tasks and datamodules",
    "benchmark": "run a suite of methods side by side and write its page",
}
_LIGHT = {
    "catalogue": "erasus_pl.commands.catalogue",
    "benchmark": "erasus_pl.commands.benchmark",
}


def main(args: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    args = sys.argv[1:] if args is None else args
    verb = args[0] if args else None
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"erasus_pl {__version__}")
        return 0
    if verb in _LIGHT:
        status: int = import_module(_LIGHT[verb]).main(args[1:])
        return status
    if verb not in VERBS:
        given = "a verb is missing" if verb is None else f"unknown verb {verb!r}"
        hint = "" if verb is None else did_you_mean(verb, VERBS)
        return complain(f"{given}, choose one of {', '.join(VERBS)}{hint}")
    from erasus_pl.cli import run

    return run(args)


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10} {about}" for verb, about in VERBS.items())
    return f"""\
usage: python -m erasus_pl VERB [options]

Make a trained model forget, and show the proof.

verbs:
{verbs}

options:
  --help     show this; VERB --help explains a verb
  --version  show the version

start here: python -m erasus_pl fit --config conf/quickstart.yaml"""


if __name__ == "__main__":
    for _stream in (sys.stdout, sys.stderr):
        if isinstance(_stream, io.TextIOWrapper):
            _stream.reconfigure(errors="replace")
    sys.exit(main())
