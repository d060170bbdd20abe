"""Evidence of a made-up run, for tests of what shows it."""

import numpy as np
import pytest

from erasus_pl.evaluation.evidence import Evidence, Measure, ModelRecord, Verdict

_SPLITS = ("forget", "retain", "test", "holdout")


def _record(name, forget_loss, rng):
    """Losses of cross-entropy kind; a model that remembers has them low on the forget set."""
    losses = {split: rng.exponential(0.5, 60) + 1e-7 for split in _SPLITS}
    losses["forget"] = rng.exponential(forget_loss, 60) + 1e-7
    scores = {split: -np.log(np.expm1(loss)) for split, loss in losses.items()}
    correct = {split: (score > 0).astype(float) for split, score in scores.items()}
    return ModelRecord(name, 2.0, scores, losses, correct, dict.fromkeys(_SPLITS, 0.1))


def _evidence(outcome="forgotten", text="plain"):
    rng = np.random.default_rng(0)
    models = {
        "original": _record("original", 0.01, rng),
        "unlearned": _record("unlearned", 0.4, rng),
        "retrained": _record("retrained", 0.5, rng),
        "retrained_2": _record("retrained (seed 2)", 0.5, rng),
    }
    models["unlearned"].seconds = 0.25
    measures = {
        key: [
            Measure("forget accuracy", 0.972, f"Share of the forget set. {text}", 0.95, 0.98),
            Measure("attack AUC", 0.512, "Chance of telling a member.", 0.47, 0.55),
            Measure("KL to retrained", None, f"Divergence in nats: {key}."),
        ]
        for key in models
    }
    counts = {"train": 1200, "forget": 60, "retain": 1140, "test": 60, "holdout": 60}
    return Evidence(
        run={"name": f"quickstart {text}", "seed": 7, "config": f"a: {text}", "git": {"rev": text}},
        manifest={"dataset": text, "description": f"class {text}", "counts": counts},
        coreset={"size": 6, "of": 60, "selector": text, "seconds": 0.03},
        models=models,
        measures=measures,
        verdict=Verdict(outcome, f"Headline {text}", [f"Reason {text}"], {text: 0.5}),
        curves={f"loss/{text}": [(0, 0.1), (1, 2.0)], "loss": [(0, 1.0), (1, 0.5)]},
        notes=[f"Note {text}"],
    )


@pytest.fixture(scope="session")
def make_evidence():
    return _evidence
