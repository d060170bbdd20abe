"""Which method of a peer is held against which of ours, and with what settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BUDGET", "LEFT_OUT", "PAIRS", "Pair"]

BUDGET = 5  # epochs, where a method lets one say

Options = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A peer's method and ours.

    Args:
        peer: the package.
        method: its name there.
        ours: stem of our YAML in conf/strategy; none where we have nothing of that kind.
        epochs: that the peer's method makes, and so ours.
        alike: from what is known of a problem to the options that give ours the peer's values.
        options: of the peer's method, beyond its defaults.
        note: on these options, for the page.
        defaults: whether ours at its defaults is held against it, or at their values only.
    """

    peer: str
    method: str
    ours: str | None = None
    epochs: int = BUDGET
    alike: Callable[[Options], Options] | None = None
    options: Options = field(default_factory=dict)
    note: str = ""
    defaults: bool = True


def _made(optimizer: str, **arguments: float) -> Options:
    return {"optimizer": {"class_path": f"torch.optim.{optimizer}", "init_args": arguments}}


def _as_it_is(_: Options) -> Options:
    """Our defaults are their values."""
    return {}


def _sgd(lr: float) -> Callable[[Options], Options]:
    return lambda _: _made("SGD", lr=lr, momentum=0.9, weight_decay=5e-4)


def _bare_sgd(lr: float) -> Callable[[Options], Options]:
    return lambda _: _made("SGD", lr=lr)


def _scrub_small(_: Options) -> Options:
    return {
        **_made("Adam", lr=5e-4, weight_decay=0.1),
        "msteps": 3, "alpha": 0.5, "gamma": 1.0, "kd_T": 2.0, "decay_epochs": [5, 8, 9],
    }  # fmt: skip


def _lfssd(about: Options) -> Options:
    return {"alpha": 3.5 if about["kind"] == "random" else 10.0}


def _jit(about: Options) -> Options:
    """Theirs sums over a batch where ours takes the mean."""
    return {**_made("SGD", lr=0.001 * about["batch_size"]), "sigma": 0.1, "n_samples": 10}


def _alpha_2(ours: str) -> Pair:
    """Where the default selects nothing, two implementations agree whatever they compute."""
    return Pair(
        "supreme", f"{ours}_det", ours, 1, lambda _: {"alpha": 2.0},
        {"selection_weighting": 2.0}, " (alpha 2)", False,
    )  # fmt: skip


PAIRS = [
    Pair("supreme", "finetune", "fine_tune", 5, _sgd(0.02)),
    Pair("supreme", "neg_grad", "gradient_ascent", 5, _sgd(0.02)),
    Pair("supreme", "random_labeling", "random_label", 3, lambda _: _made("Adam", lr=1e-4)),
    Pair("supreme", "bad_teacher", "bad_teacher", 1, _as_it_is),
    Pair("supreme", "scrub", "scrub", 10, _scrub_small),
    Pair("supreme", "ssd", "ssd", 1, _as_it_is),
    Pair("supreme", "ssd_det", "ssd", 1, _as_it_is),
    _alpha_2("ssd"),
    Pair("supreme", "lfssd", "lfssd", 1, _lfssd),
    Pair("supreme", "lfssd_det", "lfssd", 1, _lfssd),
    _alpha_2("lfssd"),
    Pair("supreme", "assd", "assd", 1, _as_it_is),
    Pair("supreme", "jit", "jit", 1, _jit),
    Pair("supreme", "unsir", "unsir", 2),
    Pair("erasus", "gradient_ascent", "gradient_ascent", BUDGET, _bare_sgd(1e-4)),
    Pair(
        "erasus", "gradient_ascent", "gradient_ascent", BUDGET, _bare_sgd(1e-3),
        {"lr": 1e-3}, " (lr 0.001)",
    ),
    Pair("erasus", "negative_gradient", "gradient_ascent", BUDGET, _bare_sgd(1e-4)),
    Pair("erasus", "saliency_unlearning", "salun"),
    Pair("erasus", "fisher_forgetting", "fisher_forgetting"),
    Pair("erasus", "scrub", "scrub"),
    Pair("erasus", "ssd", "ssd"),
    Pair("erasus", "neuron_pruning", "neuron_pruning", BUDGET, lambda _: {"fraction": 0.05}),
    Pair("erasus", "sparse_aware", "l1_sparse"),
    Pair("erasus", "certified_removal", "woodfisher"),
    *(
        Pair("erasus", method)
        for method in (
            "knowledge_distillation", "amnesiac", "wga", "fpga", "layer_freezing", "mask_based",
            "parameter_subset", "sisa", "auto",
        )
    ),
    Pair("torchunlearn", "finetune", "fine_tune"),
    Pair("torchunlearn", "neggrad", "gradient_ascent"),
    Pair("torchunlearn", "influence", "woodfisher"),
    Pair("torchunlearn", "fisher_forget", "fisher_forgetting"),
]  # fmt: skip

LEFT_OUT = {
    "erasus": "26 of its 44 names are left out: 25 are for language, vision-language or diffusion "
    "models, two of which need `peft`, and `ensemble` has no default members.",
    "supreme": "`retrain` is left out: it is what methods are measured by, and knows its own "
    "networks only. `unsir` is for images of three channels and a forgotten class; no setting here "
    "has both.",
    "torchunlearn": "Nothing is left out: its `Unlearn` class offers these four, and each imports "
    "a sub-package that the published wheel does not hold.",
}
