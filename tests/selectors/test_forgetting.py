"""Forgetting events against the paper's definition, and in a training whose labels are flipped."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from erasus_pl.callbacks import SampleHistory
from erasus_pl.evaluation.gold import train_task
from erasus_pl.selectors import Forgetting
from erasus_pl.selectors.forgetting import forgetting_events
from tests.selectors.conftest import FORGOTTEN, Data, N, classifier, images

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def _by_hand(visits):
    """Alg. 1, one sample at a time."""
    events, previous, learnt = 0, 0, False
    for visit in visits:
        if visit is None:
            continue
        now = int(visit > 0.5)
        events += previous > now
        previous, learnt = now, learnt or now == 1
    return events if learnt else math.inf


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([0.0, 1.0, 0.5, 0.6, None]), min_size=n, max_size=n),
            min_size=1,
            max_size=8,
        )
    )
)
def test_events_are_those_of_the_algorithm(rows):
    table = torch.tensor([[math.nan if v is None else v for v in row] for row in rows])
    expected = [_by_hand(column) for column in zip(*rows, strict=True)]
    assert forgetting_events(table).tolist() == expected


def test_unforgettable_forgotten_and_never_learnt():
    correct = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1]])
    assert forgetting_events(correct).tolist() == [0, 2, math.inf, 0]


def test_mislabelled_samples_come_first(fit, tmp_path):
    columns, path = images(), str(tmp_path / "history.pt")
    flipped = torch.arange(0, FORGOTTEN, 10)
    columns["target"][flipped] = (columns["target"][flipped] + 1) % 4
    task = classifier()
    task.network[1].p = 0.0  # with half the units dropped, being right is a matter of chance
    task.epochs = 20
    train_task(task, Data(columns, batch_size=16), "train", 0, QUIET, [SampleHistory(path)])
    picked = fit(Forgetting(k=len(flipped), record=path), task, columns).picked
    assert torch.isin(flipped, picked).sum() >= len(flipped) - 1


def test_ties_go_to_the_higher_loss_and_never_beat_a_count(fit, tmp_path):
    correct = torch.zeros(3, N)
    correct[:, :3] = torch.tensor([[1.0, 1, 1], [0, 0, 1], [1, 1, 1]])
    losses = torch.ones(3, N)
    losses[:, 0], losses[:, 1], losses[:, 2] = 1.0, 2.0, 500.0
    made = Forgetting(k=1)

    class Spy(Forgetting):
        def scores(self, strategy, dataset):
            spied.append(super().scores(strategy, dataset))
            return spied[-1]

    spied, columns, path = [], images(), tmp_path / "history.pt"
    task, recorder = classifier(), made.recorder()
    data = Data(columns)
    data.setup("fit")
    recorder.content = {"visited": correct >= 0, "losses": losses, "correct": correct}
    recorder.about = {
        "recorder": "SampleHistory", "options": {}, "data": data.fingerprint, "weights": "",
    }  # fmt: skip
    recorder.write(path)
    with pytest.warns(UserWarning, match="ended with other weights"):
        fit(Spy(k=1, record=str(path)), task, columns)
    (scores,) = spied
    assert scores[3] > scores[1] > scores[0] > scores[2]
    assert scores[:3].round().tolist() == [1, 1, 0]


class Watch(Callback):
    """Loss and correctness in training, from a second forward pass before each step."""

    def __init__(self):
        self.losses, self.correct = {}, {}

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        with torch.no_grad():
            outputs = copy.deepcopy(task.network)(batch["input"])
            losses, correct = task.per_sample_loss(outputs, batch), task.correct(outputs, batch)
        for i, loss, right in zip(batch["index"].tolist(), losses, correct, strict=True):
            self.losses.setdefault(i, []).append(float(loss))
            self.correct.setdefault(i, []).append(float(right))


def test_the_history_is_that_of_the_minibatches_before_their_updates():
    torch.manual_seed(0)
    task = classifier()
    task.network[1].p = 0.0
    task.epochs = 3
    watch, history = Watch(), SampleHistory(None)
    train_task(task, Data(images(), batch_size=16), "train", 0, QUIET, [watch, history])
    expected = torch.tensor([watch.losses[i] for i in range(N)]).T
    assert torch.allclose(history.content["losses"], expected, atol=1e-6)
    expected = torch.tensor([watch.correct[i] for i in range(N)]).T
    assert torch.equal(history.content["correct"], expected)
    assert history.content["visited"].all()
