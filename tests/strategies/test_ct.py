"""Transposing kernels against a network that is shown transposed images, and what is left alone."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from erasus_pl.networks import ConvNet
from erasus_pl.strategies import CT
from erasus_pl.strategies.ct import transposed
from erasus_pl.tasks import ClassificationTask


def test_exchanges_rows_and_columns():
    kernel = torch.arange(18.0).reshape(1, 2, 3, 3)
    found = transposed(kernel)
    for c in range(2):
        for i in range(3):
            for j in range(3):
                assert found[0, c, i, j] == kernel[0, c, j, i]
    assert torch.equal(transposed(found), kernel)


def test_what_it_starts_from_sees_transposed_images_as_the_original_saw_images(pictures, fit):
    torch.manual_seed(0)
    task = ClassificationTask(ConvNet(1, 4, 3))
    strategy = fit(CT(copy.deepcopy(task)), pictures.data(), max_steps=0, max_epochs=1)
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        right, found = task.network(x), strategy.task.network(x.transpose(2, 3))
        torch.testing.assert_close(found, right)
        assert not torch.allclose(strategy.task.network(x), right, atol=1e-3)


def test_frozen_kernels_and_kernels_that_are_not_square_stay(pictures, fit):
    """The published code makes all of them anew, trainable, and some of another shape."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, (1, 3), padding=(0, 1)),
        nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip
    network[0].weight.requires_grad_(False)
    before = [copy.deepcopy(m.weight) for m in network if hasattr(m, "weight")]
    own = network[2].weight
    strategy = CT(ClassificationTask(network))
    fit(strategy, pictures.data(), max_steps=0, max_epochs=1)
    after = [m.weight for m in network if hasattr(m, "weight")]
    assert torch.equal(after[0], before[0])
    assert not after[0].requires_grad
    assert torch.equal(after[1], before[1])
    assert after[2] is own
    assert torch.equal(after[2], before[2].transpose(2, 3))
    assert after[2].is_contiguous()
    assert torch.equal(after[3], before[3])


def test_reads_the_retain_set_and_anneals_by_a_cosine(pictures, fit):
    class Watch(Callback):
        def __init__(self):
            self.rates = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            assert batch["forget"] is None
            if batch_idx == 0:
                self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    watch = Watch()
    fit(CT(pictures.task), pictures.data(), max_epochs=3, callbacks=[watch])
    assert watch.rates == pytest.approx([1e-3, 0.75e-3, 0.25e-3])


def test_refuses_a_network_without_convolutions(tiny, fit):
    with pytest.raises(TypeError, match=r"CT needs a task with \['convolutions'\].*FineTune"):
        fit(CT(tiny.task), tiny.data())


def test_refuses_kernels_it_cannot_transpose(pictures, fit):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(48, 4))
    with pytest.raises(TypeError, match=r"none among its kernels \[\(1, 1\)\]; take MSG"):
        fit(CT(ClassificationTask(network)), pictures.data())


def test_refuses_to_anneal_without_an_end(pictures, fit):
    with pytest.raises(ValueError, match="max_epochs to at least 1, got -1"):
        fit(CT(pictures.task), pictures.data(), max_epochs=-1, max_steps=3)


def test_comes_back_without_the_class_in_as_many_epochs_as_training(convolved_digits, fit):
    """Three epochs, the published number, do not repair a small network."""

    def run(epochs):
        strategy = CT(
            copy.deepcopy(convolved_digits.original),
            lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=5e-4),
        )
        data = convolved_digits.data()
        data.seed = 0
        return convolved_digits.measure(fit(strategy, data, max_epochs=epochs))

    assert run(3)["retain"] < 0.8
    found = run(30)
    assert found["forget"] <= 0.02, found
    assert found["retain"] >= convolved_digits.retrained["retain"] - 0.03, found
    assert found["test"] >= convolved_digits.retrained["test"] - 0.03, found
