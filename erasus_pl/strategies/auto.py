"""Auto: the strategy that recorded runs speak for, in cases like this one, and the reason.

Choosing an algorithm by the features of a problem from what algorithms did on others is Rice's
algorithm selection (Advances in Computers 1976; surveyed by Kerschke et al., "Automated Algorithm
Selection: Survey and Perspectives", Evolutionary Computation 2019, arXiv:1811.11597). A record
holds cases (kind of task and request, size of data, forget set and network) and what each
strategy, tuned, achieved in each: the AvgGap to the retrained model, and its cost over that of
retraining. The excess of a strategy in a case is (AvgGap − floor) / (AvgGap of the original −
floor), 0 for a second retrained model and 1 for doing nothing. Expected in a new case is the mean
of the excesses in recorded cases of its kind, weighted by 1 / (1 + d)², with d the distance of the
logarithms of the sizes (`expected`); the least expected within the budget is chosen, with the
settings that were best in the nearest case.

The record that comes with the package is of small classifiers; `python -m erasus_pl benchmark`
makes another. Where a kind of task is not in it, NegGradPlus is taken and the line says so.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import erasus_pl.strategies as room
from erasus_pl.requests import ForgetClass
from erasus_pl.strategies._stages import Staged
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import OptimizerCallable, Task

__all__ = ["Auto", "distance", "excess", "expected"]

_SHIPPED = Path(__file__).with_suffix(".json")
_SIZES = ("train", "forget", "parameters")
Case = Mapping[str, Any]


def distance(case: Case, other: Case) -> float:
    """Root of the mean squared difference in log₁₀ of the sizes; infinite between kinds."""
    if (case["task"], case["request"]) != (other["task"], other["request"]):
        return math.inf
    steps = [math.log10(case[size]) - math.log10(other[size]) for size in _SIZES]
    return math.sqrt(sum(step**2 for step in steps) / len(steps))


def excess(gap: float, floor: float, original: float) -> float:
    """(gap − floor) / (original − floor), at least 0; 0 where there is nothing to forget."""
    return max(0.0, gap - floor) / (original - floor) if original > floor else 0.0


def expected(case: Case, record: Sequence[Case]) -> dict[str, tuple[float, float, Case]]:
    """What is expected of each strategy in a case.

    Args:
        case: `task`, `request`, `train`, `forget`, `parameters`.
        record: cases with, beside these, `name`, `floor`, `original` and `runs`: strategy →
            `gap`, `cost`, `settings`.

    Returns:
        Strategy → its expected excess and cost, and the nearest case it was run in; none for
        those that were run in no case of this kind.
    """
    sums: dict[str, list[float]] = {}
    nearest: dict[str, tuple[float, Case]] = {}
    for other in record:
        d = distance(case, other)
        if math.isinf(d):
            continue
        weight = 1 / (1 + d) ** 2
        for name, run in other["runs"].items():
            total = sums.setdefault(name, [0.0, 0.0, 0.0])
            bad = excess(run["gap"], other["floor"], other["original"])
            for i, value in enumerate((1.0, bad, run["cost"])):
                total[i] += weight * value
            if name not in nearest or d < nearest[name][0]:
                nearest[name] = (d, other)
    return {
        name: (bad / weight, cost / weight, nearest[name][1])
        for name, (weight, bad, cost) in sums.items()
    }


class Auto(Staged, Strategy):
    """Take the strategy that recorded runs speak for in cases like this one, and say why.

    Give `trainer.max_epochs: -1` for the epochs that were best there; any other number is kept.

    Args:
        task: the trained model.
        optimizer: of the strategy that is chosen; if not given, its own with the recorded rate.
        budget: cost at most, as part of that of retraining, above 0.
        evidence: a JSON file of recorded runs, as `python -m erasus_pl benchmark --evidence` writes
            it; that of the package if not given.
    """

    paper: ClassVar[dict] = {
        "title": "Automated Algorithm Selection: Survey and Perspectives",
        "year": 2019,
        "arxiv": "1811.11597",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        budget: float = 0.5,
        evidence: str | None = None,
    ) -> None:
        super().__init__(task, optimizer)
        if not budget > 0:
            msg = f"`budget` must be above 0, got {budget}"
            raise ValueError(msg)
        self.budget = budget
        self.cases = _read(evidence)
        self.reason = ""
        self.compose("recipe", [room.NegGradPlus], [1], optimizer)  # type: ignore[attr-defined]

    def recorder(self) -> None:
        """Strategies that need a record of the original's training are not chosen."""

    def setup(self, stage: str) -> None:
        """Choose, then set up what was chosen; without data, only see that the task will do."""
        if stage == "fit" and self.data is None:
            self.check_task()
            return
        if stage == "fit":
            self._choose()
        super().setup(stage)

    def teardown(self, stage: str) -> None:
        """Give the datamodule its own epochs back."""
        super().teardown(stage)
        if stage == "fit" and hasattr(self, "_epoch"):
            self.data.epoch = self._epoch

    def _choose(self) -> None:
        case = {
            "task": type(self.task).__name__,
            "request": "class" if isinstance(self.data.request, ForgetClass) else "spread",
            "train": len(self.data.train_set),
            "forget": len(self.data.forget_set),
            "parameters": sum(p.numel() for p in self.task.parameters()),
        }
        found = expected(case, self.cases)
        able = {
            name: values
            for name, values in found.items()
            if set(getattr(room, name).requires) <= self.task.capabilities
            and values[1] <= self.budget
        }
        given = cast(int, self.trainer.max_epochs)
        if not able:
            kind = f"a {case['request']} request on a {case['task']}"
            self.reason = (
                f"Auto: no recorded run of {kind} costs at most {self.budget:g} of retraining: "
                "NegGradPlus, which runs on any task"
            )
            self._take(room.NegGradPlus, {}, given if given > 0 else 5)  # type: ignore[attr-defined]
        else:
            order = sorted(able, key=lambda name: able[name][0])
            name, (bad, cost, near) = order[0], able[order[0]]
            run = near["runs"][name]
            second = f"; next {order[1]}, {100 * able[order[1]][0]:.0f} %" if order[1:] else ""
            self.reason = (
                f"Auto: {name} with {run['settings'] or 'its defaults'}, best in recorded cases of "
                f"this kind at up to {self.budget:g} of retraining's cost: leaves "
                f"{100 * bad:.0f} % of the original's distance to the retrained model for "
                f"{cost:.2f} of its cost{second}; nearest case: {near['name']}"
            )
            self._take(getattr(room, name), run["settings"], given)
        if self.trainer.is_global_zero:
            print(self.reason, flush=True)

    def _take(self, kind: Any, settings: Mapping[str, Any], given: int) -> None:
        own = dict(settings)
        self._epoch = self.data.epoch
        self.data.epoch = own.pop("epoch", self._epoch)
        epochs, lr = own.pop("epochs", 5), own.pop("lr", None)
        make: Callable[[Task], Strategy] = partial(kind, **own)
        if lr is not None and self.optimizer is None:
            make = _with_rate(make, lr)
        self.compose("recipe", [make], [1 if given < 1 else given], self.optimizer)
        if given < 1:
            self.epochs = [1 if self.stages[0].one_shot else epochs]


def _with_rate(make: Callable[[Task], Strategy], lr: float) -> Callable[[Task], Strategy]:
    """Makes a strategy whose default optimiser has another learning rate."""

    def made(task: Task) -> Strategy:
        strategy = make(task)
        default = strategy.default_optimizer

        def optimizer(parameters: Any) -> Any:
            found = default(list(parameters))
            for group in found.param_groups:
                group["lr"] = lr
            return found

        strategy.optimizer = optimizer
        return strategy

    return made


def _read(path: str | None) -> list[dict[str, Any]]:
    file = _SHIPPED if path is None else Path(path)
    try:
        content = json.loads(file.read_text("utf-8"))
        return list(content["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = (
            f"`evidence`: {str(file)!r} is no record of runs ({type(error).__name__}); write one "
            "with python -m erasus_pl benchmark --evidence"
        )
        raise ValueError(msg) from error
