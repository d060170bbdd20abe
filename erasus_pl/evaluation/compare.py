"""Measure the original, the unlearned and the retrained model on every split, side by side."""

from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Protocol

import torch
from torch import Tensor

from erasus_pl.evaluation.evidence import Evidence, ModelRecord
from erasus_pl.evaluation.measures import measure
from erasus_pl.evaluation.verdict import verdict
from erasus_pl.requests import ForgetRandom
from erasus_pl.tasks.base import SPLITS, Task

__all__ = ["SplitData", "compare", "records"]

Watch = Callable[[Iterable[dict[str, Any]], str], Iterable[dict[str, Any]]]

_NAMES = {
    "original": "original",
    "unlearned": "unlearned",
    "retrained": "retrained",
    "retrained_2": "retrained (seed 2)",
}


class SplitData(Protocol):
    """What is measured on: the four sets, and a way through each; any `UnlearningDataModule`."""

    request: Any
    manifest: Any

    @property
    def forget_set(self) -> Sized:
        """The forget set."""

    @property
    def retain_set(self) -> Sized:
        """The retain set."""

    @property
    def test_set(self) -> Sized:
        """The test set."""

    @property
    def holdout_set(self) -> Sized:
        """The holdout set."""

    def sweep(self, dataset: Any) -> Iterable[dict[str, Any]]:
        """Every sample of a set once, in order, as batches."""


def compare(
    original: Task,
    unlearned: Task,
    retrained: Task | list[Task] | None,
    data: SplitData,
    *,
    seconds: Mapping[str, float] | None = None,
    run: Mapping[str, Any] | None = None,
    coreset: Mapping[str, Any] | None = None,
    curves: Mapping[str, list[tuple[int, float]]] | None = None,
    notes: list[str] | None = None,
    watch: Watch | None = None,
) -> Evidence:
    """Hold an unlearned model against the original and the retrained gold.

    Args:
        original: the model before.
        unlearned: what a strategy made of it.
        retrained: the model trained on the retain set alone; two of different seeds give the
            noise floor; none for a weaker statement.
        data: the datamodule whose request was carried out, after `setup`.
        seconds: wall seconds each model took to make, by `original`, `unlearned`, `retrained`, ….
        run: name, seed, versions, configuration, … for the report.
        coreset: `size`, `of`, `selector`, `seconds`.
        curves: name → `(step, value)` of the unlearning run.
        notes: assumptions and caveats.
        watch: goes through the batches of a split in its own way, such as with a progress bar.

    Returns:
        The evidence; `evidence.write(folder)` makes the report.
    """
    gold = [] if retrained is None else retrained if isinstance(retrained, list) else [retrained]
    models = {"original": original, "unlearned": unlearned}
    models |= {f"retrained{'' if i == 1 else f'_{i}'}": task for i, task in enumerate(gold, 1)}
    found = records(models, data, seconds, watch)
    return Evidence(
        run=dict(run or {}),
        manifest=data.manifest.to_dict(),
        coreset=dict(coreset) if coreset else None,
        models=found,
        measures=measure(found),
        verdict=verdict(found, random_draw=isinstance(data.request, ForgetRandom)),
        curves=dict(curves or {}),
        notes=[f"The holdout set is {data.manifest.holdout}.", *(notes or [])],
    )


@torch.no_grad()
def records(
    models: Mapping[str, Task],
    data: SplitData,
    seconds: Mapping[str, float] | None = None,
    watch: Watch | None = None,
) -> dict[str, ModelRecord]:
    """Per-sample scores, losses and correctness of each model on each split.

    Every model sees the same batches, once; the divergence to the retrained model is taken on the
    way. Models are measured in eval mode and left in the mode they were in.
    """
    gold = models.get("retrained")
    modes = {name: task.training for name, task in models.items()}
    sets = (data.forget_set, data.retain_set, data.test_set, data.holdout_set)
    found = {
        name: ModelRecord(
            _NAMES.get(name, name.replace("_", " (seed ") + ")"), (seconds or {}).get(name)
        )
        for name in models
    }
    for task in models.values():
        task.eval()
    for split, dataset in zip(SPLITS, sets, strict=True):
        rows: dict[str, dict[str, list[Tensor]]] = {
            name: {"scores": [], "losses": [], "correct": [], "kl": []} for name in models
        }
        batches: Iterable[dict[str, Any]] = data.sweep(dataset)
        for batch in watch(batches, split) if watch else batches:
            outputs = {}
            for name, task in models.items():
                batch = task.transfer_batch_to_device(batch, task.device, 0)
                outputs[name] = out = task(batch)
                rows[name]["scores"].append(task.score(out, batch))
                rows[name]["losses"].append(task.per_sample_loss(out, batch))
                rows[name]["correct"].append(task.correct(out, batch))
            if gold is not None and "divergence" in gold.capabilities:
                reference = outputs["retrained"]
                for name, task in models.items():
                    out = outputs[name].to(reference.device)
                    rows[name]["kl"].append(task.divergence(out, reference, batch))
        for name, columns in rows.items():
            record = found[name]
            for column in ("scores", "losses", "correct"):
                values = columns[column]
                array = torch.cat(values).double().cpu().numpy() if values else _empty()
                getattr(record, column)[split] = array
            kl = columns["kl"]
            record.kl_to_retrained[split] = torch.cat(kl).mean().item() if kl else None
    for name, task in models.items():
        task.train(modes[name])
    return found


def _empty() -> Any:
    return torch.empty(0).double().numpy()
