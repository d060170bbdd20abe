"""Run our strategies and those of other packages on the same problems, and write down ratios.

Each package gets an environment of its own in `.peers/`, made from `requirements/<package>.txt` if
it is not there. Originals and retrained models are trained once with our code; every run is kept in
`runs/peers` under a hash of all that it depends on, so that a second call goes on where the first
was stopped. `docs/results/peers.md` is written at the end.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE.parents[1]), str(HERE)) if p not in sys.path]

import lightning  # noqa: E402
import torch  # noqa: E402
from _page import Line, page  # noqa: E402
from _pairs import BUDGET, PAIRS  # noqa: E402
from _problems import SETTINGS, make  # noqa: E402
from _runs import ROOT, drive, job, pins, sources  # noqa: E402
from _sides import Gold, Side, side  # noqa: E402

import erasus_pl  # noqa: E402

PACKAGES = {
    "supreme": "supreme-unlearning", "erasus": "erasus", "torchunlearn": "torchunlearn",
}  # fmt: skip
NOTES = [
    "CPU time is that of the process during the unlearning call alone, the smaller of two calls "
    "from the same start; loaders, networks and trainers are ready by then. For ours the call is "
    "`Trainer.fit`, with Lightning's own start and end in it. The machine's load has been seen "
    "to move the median CPU ratios by a third, so all sides of a problem are run one after the "
    "other; what is kept of an earlier call may have met another load, and `--anew` runs it again.",
    "Equal on all sides: splits, the original's weights, batch size, epochs, one thread, torch. "
    "Where theirs passes over the whole retain set each epoch, so does ours.",
    "Not equal: hyper-parameters. Each side has its own defaults, since these are what users get; "
    "where ours can be given theirs, columns show that too. Methods that have their epochs written "
    "into them, all of supreme-unlearning's, keep them, and ours makes as many. `bad_teacher` and "
    "`random_labeling` of supreme-unlearning draw batches of 256 and 128, the former from 30 % of "
    "the retain set where ours passes over all of it. Our `ssd`, `neuron_pruning`, "
    "`fisher_forgetting` and `woodfisher` edit once, whatever the epochs of what they are held "
    "against.",
    "Methods are paired by name, or by what they set out to do: erasus's `saliency_unlearning`, "
    "`sparse_aware` and `certified_removal` with the method whose paper or idea is nearest. "
    "`ssd_det` and `lfssd_det` are supreme-unlearning's per-sample forms, as ours are; with the "
    "default alpha of 10 they select nothing where a tenth of the data is forgotten, so they are "
    "held against ours with alpha 2 as well.",
    "torchvision, which torchunlearn and supreme-unlearning import, has no build beside this "
    "torch: a stand-in answers the import and raises where it is called, but for "
    "`transforms.v2.Compose`, which `jit` needs and which applies functions in turn. "
    "supreme-unlearning asks for Python 3.9, torch 2.1 and lightning 2.1 and was run on newer "
    "ones; its switch for loaders without worker processes is on.",
    "Nothing of theirs is in this repository. supreme-unlearning has the MIT licence; erasus and "
    "torchunlearn name it in their metadata and hold no text of it.",
]  # fmt: skip

Stems = dict[tuple[str, str, str, int, str], str]


def _own() -> list[str]:
    """All our strategies but retraining, which is what they are measured by."""
    return [p.stem for p in sorted((ROOT / "conf/strategy").glob("*.yaml")) if p.stem != "retrain"]


def _plan(peers: list[str], golds: Mapping[Path, Gold], kept: Path) -> tuple[list[dict], Stems]:
    """All jobs, and (problem, peer, method, epochs, options) → stem of the result."""
    jobs: dict[str, dict[str, Any]] = {}
    stems: Stems = {}
    codes = {peer: sources(peer) for peer in ("ours", *peers)}

    def want(peer: str, problem: Path, method: str, epochs: int, options: dict) -> None:
        spec = job(peer, problem, method, epochs, options, kept, codes[peer])
        jobs[spec["out"]] = spec
        stems[problem.name, peer, method, epochs, json.dumps(options)] = spec["out"]

    for problem, gold in golds.items():
        for name in _own():
            want("ours", problem, name, BUDGET, {})
        for pair in PAIRS:
            if pair.peer not in peers:
                continue
            want(pair.peer, problem, pair.method, pair.epochs, pair.options)
            if pair.ours:
                if pair.defaults:
                    want("ours", problem, pair.ours, pair.epochs, {})
                if pair.alike:
                    want("ours", problem, pair.ours, pair.epochs, pair.alike(gold.about))
    return list(jobs.values()), stems


def _tabulate(peers: list[str], golds: Mapping[Path, Gold], stems: Stems, facts: list[str]) -> str:
    """Measure every result and make the page."""
    settings = {g.about["setting"]: SETTINGS[g.about["setting"]].title for g in golds.values()}

    def sides(setting: str, peer: str, method: str | None, epochs: int, options: Any) -> list[Side]:
        if method is None or options is None:
            return []
        found = []
        for place, gold in golds.items():
            if gold.about["setting"] == setting:
                given = options(gold.about) if callable(options) else options
                stem = stems[place.name, peer, method, epochs, json.dumps(given)]
                found.append(side(gold, stem))
        return found

    lines = [
        Line(
            pair,
            setting,
            sides(setting, pair.peer, pair.method, pair.epochs, pair.options),
            sides(setting, "ours", pair.ours, pair.epochs, {} if pair.defaults else None),
            sides(setting, "ours", pair.ours, pair.epochs, pair.alike),
        )
        for peer in peers
        for pair in PAIRS
        if pair.peer == peer
        for setting in settings
    ]
    own = {name: {s: sides(s, "ours", name, BUDGET, {}) for s in settings} for name in _own()}
    anchors = {
        model: {
            s: [g.gap(g.logits[model]) for g in golds.values() if g.about["setting"] == s]
            for s in settings
        }
        for model in ("original", "retrained_2")
    }
    return page(lines, own, anchors, settings, facts)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _facts(peers: list[str], seeds: list[int], absent: list[str]) -> list[str]:
    packages = ", ".join(f"{PACKAGES[p]} {pins(p)[PACKAGES[p]]}" for p in peers)
    facts = [
        f"erasus-pl {erasus_pl.__version__} on lightning {lightning.__version__}"
        + (f", and {packages}" if packages else "")
        + f"; all on torch {torch.__version__.split('+')[0]} for CPU and Python "
        f"{platform.python_version()}.",
        f"Seeds {', '.join(map(str, seeds))}: of the original, of a random draw and of the "
        "unlearning. The retrained models have seeds of their own.",
        f"One thread on {_processor()}, a machine shared with other work.",
        *NOTES,
    ]
    return facts + [f"Not run, since the data is not there: {', '.join(absent)}."] * bool(absent)


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="*", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--data", type=Path, default=ROOT / "data",
                        help="folder of mnist.npz and location30.npz")  # fmt: skip
    parser.add_argument("--kept", type=Path, default=ROOT / "runs/peers")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results/peers.md")
    parser.add_argument("--anew", action="store_true", help="run again what was kept")
    given = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    kept = given.kept.resolve()
    absent = [n for n in given.settings if not SETTINGS[n].available(given.data)]
    golds = {
        (place := make(name, seed, given.data, kept / "problems")): Gold(place)
        for name in given.settings
        if name not in absent
        for seed in given.seeds
    }
    if not golds:
        parser.error(f"`--data`: {given.data} has none of the data of {', '.join(absent)}")
    jobs, stems = _plan(given.peers, golds, kept)
    if given.anew:
        for spec in jobs:
            Path(spec["out"] + ".json").unlink(missing_ok=True)
    for place in golds:  # all sides of a problem one after the other: the machine's load changes
        for peer in ("ours", *given.peers):
            about = {"peer": peer, "problem": place.name}
            drive(peer, [s for s in jobs if about.items() <= s["about"].items()], kept)
    text = _tabulate(given.peers, golds, stems, _facts(given.peers, given.seeds, absent))
    given.page.parent.mkdir(parents=True, exist_ok=True)
    given.page.write_text(text, "utf-8")
    print(f"wrote {given.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
