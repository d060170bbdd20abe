"""What a benchmark is made of: scenarios, strategies, selectors, and one search that tunes all."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from erasus_pl._words import UsageError, did_you_mean

__all__ = ["Cell", "Scenario", "Suite", "load_suite"]

Settings = dict[str, Any]
# Settings that are the run's rather than the strategy's.
RUN_SETTINGS = ("epochs", "epoch", "forget_batch_size")
_KEYS = (
    "title", "about", "seeds", "scenarios", "strategies", "search", "selectors", "fractions",
    "left_out", "defaults",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """Data, a task and a request.

    Args:
        name: as tables show it.
        task, data, request: parts, each with `class_path` and `init_args`.
    """

    name: str
    task: dict[str, Any]
    data: dict[str, Any]
    request: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run: a strategy with its settings unlearns one original, and is measured.

    Args:
        scenario: what is unlearned.
        name: of the strategy's part.
        strategy: that part.
        settings: what differs from it, and the run's own.
        selector: part of the selector, or none for the whole forget set.
        seed: of original, gold and run.
        judge: `validation` while tuning, `test` for what is reported.
    """

    scenario: Scenario
    name: str
    strategy: dict[str, Any]
    settings: Settings
    seed: int
    judge: str
    selector: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """Sixteen hex digits that change with whatever the result depends on."""
        content = json.dumps(asdict(self), sort_keys=True, default=str)
        sources = [_source(p["class_path"]) for p in (self.strategy, self.selector) if p]
        return hashlib.sha256("\n".join([content, *sources]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Suite:
    """A benchmark as its YAML says.

    Args:
        title: of the page.
        about: a paragraph on the page.
        seeds: how many; each has its own original and retrained models.
        scenarios: what is unlearned.
        strategies: name → part.
        spaces: name → setting → values that its search draws from.
        fixed: name → settings that are given.
        trials: settings tried for each strategy on each scenario, the defaults first.
        selectors: name → part; none for the whole forget set alone.
        fractions: budgets of the selectors.
        left_out: strategy or selector → why it is not run.
    """

    title: str
    about: str
    seeds: int
    scenarios: dict[str, Scenario]
    strategies: dict[str, dict[str, Any]]
    spaces: dict[str, dict[str, list[Any]]]
    fixed: dict[str, Settings]
    trials: int
    selectors: dict[str, dict[str, Any]] = field(default_factory=dict)
    fractions: tuple[float, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def settings(self, name: str) -> list[Settings]:
        """The settings that a strategy's search tries: as given first, then random draws.

        Draws are without repetition and depend on the strategy's name alone.
        """
        fixed, space = self.fixed[name], self.spaces[name]
        every = [dict(zip(space, v, strict=True)) for v in itertools.product(*space.values())]
        random.Random(name).shuffle(every)
        return [dict(fixed), *({**fixed, **drawn} for drawn in every if drawn)][: self.trials]

    def tuning(self, scenario: Scenario, name: str) -> list[Cell]:
        """Cells that are judged on validation data, of a seed that is not reported."""
        return [
            Cell(scenario, name, self.strategies[name], settings, 0, "validation")
            for settings in self.settings(name)
        ]

    def final(self, scenario: Scenario, name: str, settings: Settings) -> Iterator[Cell]:
        """Cells that are reported, with the settings that were best on validation data."""
        part = self.strategies[name]
        for seed in range(1, self.seeds + 1):
            yield Cell(scenario, name, part, settings, seed, "test")
            for selector, fraction in itertools.product(self.selectors.values(), self.fractions):
                given = {**selector.get("init_args", {}), "fraction": fraction}
                picked = {"class_path": selector["class_path"], "init_args": given}
                yield Cell(scenario, name, part, settings, seed, "test", picked)


def load_suite(path: str | Path) -> Suite:
    """Read a suite.

    Raises:
        UsageError: the file is not there, or something in it is wrong; the line says what to do.
    """
    file = Path(path)
    given = _read(file)
    unknown = next((k for k in given if k not in _KEYS), None)
    if unknown is not None:
        msg = f"`{unknown}` is no key of a benchmark{did_you_mean(unknown, _KEYS)}"
        raise UsageError(msg)
    seeds, search = given.get("seeds", 5), given.get("search", {})
    trials = search.get("trials", 1)
    for name, value in (("seeds", seeds), ("search.trials", trials)):
        if not isinstance(value, int) or value < 1:
            msg = f"`{name}` must be a whole number of at least 1, got {value!r}"
            raise UsageError(msg)
    defaults, shared = given.get("defaults", {}), search.get("space", {})
    strategies, spaces, fixed = {}, {}, {}
    for name, own in given.get("strategies", {}).items():
        part = _read(file.parent.parent / "strategy" / f"{name}.yaml")
        strategies[name] = part
        steps = _iterates(part) and _optimizer(part)
        tunable = {**(shared if steps else {}), **(own or {})}
        spaces[name] = {k: v for k, v in tunable.items() if isinstance(v, list)}
        given_values = {k: v for k, v in tunable.items() if not isinstance(v, list)}
        fixed[name] = {**(defaults if steps else {}), **given_values}
    selectors = {
        name: _read(file.parent.parent / "selector" / f"{name}.yaml")
        for name in given.get("selectors") or []
    }
    scenarios = {
        name: Scenario(
            name,
            *(_part(parts.get(k), file.parent, f"scenarios.{name}.{k}") for k in
              ("task", "data", "request")),
        )
        for name, parts in given.get("scenarios", {}).items()
    }  # fmt: skip
    for name, found in (("scenarios", scenarios), ("strategies", strategies)):
        if not found:
            msg = f"`{name}`: {str(file)!r} names none; give at least one"
            raise UsageError(msg)
    return Suite(
        given.get("title", file.stem), given.get("about", ""), seeds, scenarios, strategies,
        spaces, fixed, trials, selectors, tuple(given.get("fractions", ())),
        given.get("left_out", {}),
    )  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        msg = f"there is no file {str(file)!r}; benchmarks are the files in conf/benchmark"
        raise UsageError(msg)
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except yaml.YAMLError as error:
        msg = f"{str(file)!r} is no YAML: {error}"
        raise UsageError(msg) from error
    if not isinstance(content, dict):
        msg = f"{str(file)!r} must hold keys and values"
        raise UsageError(msg)
    return content


def _part(given: Any, folder: Path, field_name: str) -> dict[str, Any]:
    if isinstance(given, str):
        return _read(folder / given)
    if isinstance(given, Mapping) and "part" in given:
        part = _read(folder / given["part"])
        own = {k: v for k, v in given.items() if k != "part"}
        return {**part, "init_args": {**part.get("init_args", {}), **own}}
    if not isinstance(given, Mapping) or "class_path" not in given:
        msg = f"`{field_name}` must be a part's file or have a `class_path`, got {given!r}"
        raise UsageError(msg)
    return dict(given)


def _optimizer(part: Mapping[str, Any]) -> bool:
    return part.get("init_args", {}).get("optimizer") is not None


def _class(path: str) -> type:
    from importlib import import_module

    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _iterates(part: Mapping[str, Any]) -> bool:
    """Whether the strategy takes steps, and not one edit."""
    from erasus_pl.strategies import Strategy

    found = _class(part["class_path"])
    return issubclass(found, Strategy) and found.edit is Strategy.edit


def _source(path: str) -> str:
    import inspect

    return hashlib.sha256(inspect.getsource(inspect.getmodule(_class(path))).encode()).hexdigest()  # type: ignore[arg-type]
