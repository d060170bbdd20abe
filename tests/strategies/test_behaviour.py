"""On a trained model of real digits, forgetting the threes: what each strategy achieves.

Accuracies are held against a model retrained without the threes. No strategy is tuned beyond its
learning rate, its weights and whether an epoch passes over the retain set.
"""

import copy

import pytest
import torch

from erasus_pl import strategies as room


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=5e-4)


def adam(lr):
    return lambda p: torch.optim.Adam(p, lr=lr)


def ascend(task):
    """Alone it breaks the rest too."""
    return room.GradientAscent(task, sgd(0.03))


def repair(task):
    """Alone it forgets too little."""
    return room.FineTune(task, sgd(0.01))


RETAIN = {"epoch": "retain"}
# strategy, options, epochs, options of the data
EFFECTIVE = [
    ("NegGradPlus", {"alpha": 0.99, "optimizer": sgd(0.01)}, 10, RETAIN),
    ("NegGradPlus", {"alpha": 0.98, "optimizer": sgd(0.1)}, 10, {}),
    ("KLAscent", {"alpha": 5.0, "optimizer": adam(3e-3)}, 5, {}),
    ("RandomLabel", {"optimizer": sgd(0.03)}, 10, RETAIN),
    ("SalUn", {"optimizer": sgd(0.03)}, 10, RETAIN),
    ("BadTeacher", {"optimizer": adam(3e-3), "retain_fraction": 1.0}, 10, {}),
    (
        "SCRUB",
        {"alpha": 0.1, "msteps": 3, "decay_epochs": (), "optimizer": sgd(0.01)},
        6,
        RETAIN,
    ),
    ("SSD", {"alpha": 3.0}, 1, {}),
    ("Pipeline", {"stages": [ascend, repair], "epochs": (3, 5)}, 8, {}),
    ("Retrain", {}, 30, {}),
]


def test_the_original_remembers_and_the_retrained_does_not(digits):
    assert digits.before["forget"] > 0.97
    assert digits.retrained["forget"] == 0.0
    assert digits.retrained["retain"] > 0.97


@pytest.mark.parametrize(
    ("name", "options", "epochs", "data"), EFFECTIVE, ids=[f"{e[0]}-{e[2]}" for e in EFFECTIVE]
)
def test_forgets_the_class_and_keeps_the_rest(name, options, epochs, data, digits, fit):
    """Within 5 points of the retrained model on forget, 3 on retain, 4 on test samples."""
    strategy = getattr(room, name)(copy.deepcopy(digits.original), **options)
    found = digits.measure(fit(strategy, digits.data(**data), max_epochs=epochs))
    assert abs(found["forget"] - digits.retrained["forget"]) <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.04, found


def test_fine_tuning_forgets_too_little(digits, fit):
    """The paper's fine-tuning keeps most of the threes; a report must not hide that."""
    strategy = room.FineTune(copy.deepcopy(digits.original))
    found = digits.measure(fit(strategy, digits.data(), max_epochs=10))
    assert 0.5 < found["forget"] < digits.before["forget"]
    assert found["retain"] >= digits.before["retain"] - 0.01


def test_gradient_ascent_unheld_breaks_the_rest(digits, fit):
    strategy = room.GradientAscent(copy.deepcopy(digits.original), optimizer=sgd(0.03))
    found = digits.measure(fit(strategy, digits.data(), max_epochs=10))
    assert found["forget"] == 0.0
    assert found["retain"] < 0.9


def test_rewinding_chooses_among_epochs_that_forgot_to_different_degrees(digits, fit):
    settings = {"alpha": 0.1, "msteps": 5, "decay_epochs": (), "optimizer": sgd(0.01)}
    data = digits.data(epoch="retain")
    strategy = room.SCRUB(copy.deepcopy(digits.original), **settings, rewind=True)
    fit(strategy, data, max_epochs=6)
    assert len(strategy.errors) == 6
    assert strategy.errors[0] < 0.9 < strategy.errors[-1]
    assert strategy.errors[strategy.rewound_to] == 1 - digits.measure(strategy)["forget"]
