"""How long the command line takes to start, against `import lightning`.

`--help` of the command line and `fit --help`, which loads every strategy, selector and task and
builds the parser of all Trainer options, are held against `python -c "import lightning"`; the bare
interpreter, `import erasus_pl` and `catalogue` are reported beside them. Each sample is a fresh
process; CPU seconds are those that the kernel counted for it and its children. The wall time of
`fit --help` is reported and not judged: on a shared machine it measures the neighbours.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable

from _measure import ROOT, Target, children, interleave, options, report, summary

area = "foundation"
name = "start_up"

TARGETS = (
    Target("help_cpu_ratio", 1.3),
    Target("help_wall_ratio", 1.3),
    Target("fit_help_cpu_ratio", 1.3),
)
YARDSTICK = "import_lightning"
COMMANDS = {
    "python": ["-c", "pass"],
    YARDSTICK: ["-c", "import lightning"],
    "import_erasus_pl": ["-c", "import erasus_pl"],
    "help": ["-m", "erasus_pl", "--help"],
    "fit_help": ["-m", "erasus_pl", "fit", "--help"],
    "catalogue": ["-m", "erasus_pl", "catalogue"],
}


def start(command: list[str]) -> Callable[[], tuple[float, float]]:
    """What runs a command in a fresh interpreter and returns its `(cpu, wall)` seconds."""

    def once() -> tuple[float, float]:
        cpu, wall = children(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=os.environ, capture_output=True, check=False
        )
        taken = children() - cpu, time.perf_counter() - wall
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed: {done.stderr.decode()[-500:]}")
        return taken

    return once


def main(args: list[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=None, help="how often each command runs")
    given = parser.parse_args(args)
    rounds = given.rounds or (5 if given.quick else 11)
    taken = interleave(
        {key: start(command) for key, command in COMMANDS.items()},
        rounds,
        seconds=40 if given.quick else 600,
    )
    figures = {}
    for key, clocks in taken.items():
        for clock, values in clocks.items():
            figures[f"{key}_{clock}_s"] = summary(values)
            print(f"{key}_{clock}_s: {figures[f'{key}_{clock}_s']}")
    for key in COMMANDS:
        for clock in ("cpu", "wall"):
            middle = figures[f"{key}_{clock}_s"]["median"]
            yardstick = figures[f"{YARDSTICK}_{clock}_s"]["median"]
            figures[f"{key}_{clock}_ratio"] = round(middle / yardstick, 3)
    del figures[f"{YARDSTICK}_cpu_ratio"], figures[f"{YARDSTICK}_wall_ratio"]
    return report(area, name, figures, TARGETS, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
