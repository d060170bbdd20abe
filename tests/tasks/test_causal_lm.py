"""Language modelling: shift, padding and means over labelled tokens, against plain loops."""

import pytest
import torch
from torch import nn

from erasus_pl.networks import TinyLlama
from erasus_pl.tasks import CausalLMTask
from erasus_pl.tasks.causal_lm import IGNORE

pytestmark = pytest.mark.smoke


@pytest.fixture
def task():
    torch.manual_seed(0)
    return CausalLMTask(TinyLlama(11, 8, 2, 2)).eval()


@pytest.fixture
def batch():
    ids = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
    labels = ids.masked_fill(mask == 0, IGNORE)
    labels[0, :2] = IGNORE
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "index": torch.arange(3)}


def _tokens(outputs, labels):
    for i in range(len(labels)):
        rows = [
            (outputs[i, t], labels[i, t + 1].item())
            for t in range(labels.shape[1] - 1)
            if labels[i, t + 1] != IGNORE
        ]
        yield rows


def test_loss_is_the_mean_over_labelled_tokens_of_the_shifted_nll(task, batch):
    outputs = task(batch)
    expected = [
        torch.stack([-z.log_softmax(-1)[y] for z, y in rows]).mean()
        for rows in _tokens(outputs, batch["labels"])
    ]
    assert torch.allclose(task.per_sample_loss(outputs, batch), torch.stack(expected), atol=1e-6)


def test_divergence_and_correct_are_means_over_labelled_tokens(task, batch):
    a, b = task(batch), torch.randn(3, 6, 11)
    kl = task.divergence(a, b, batch)
    correct = task.correct(a, batch)
    for i, (own, other) in enumerate(
        zip(_tokens(a, batch["labels"]), _tokens(b, batch["labels"]), strict=True)
    ):
        p = [z.softmax(-1) for z, _ in other]
        q = [z.softmax(-1) for z, _ in own]
        expected = torch.stack(
            [(x * (x.log() - y.log())).sum() for x, y in zip(p, q, strict=True)]
        ).mean()
        assert kl[i].item() == pytest.approx(expected.item(), abs=1e-5)
        hits = [float(z.argmax().item() == y) for z, y in own]
        assert correct[i].item() == pytest.approx(sum(hits) / len(hits))


def test_padding_changes_nothing(task, batch):
    row = {k: v[1:2] for k, v in batch.items()}
    short = {k: v[:, :4] if v.dim() == 2 else v for k, v in row.items()}
    long, cut = task(row), task(short)
    assert torch.allclose(long[:, :4], cut, atol=1e-6)
    assert torch.allclose(task.per_sample_loss(long, row), task.per_sample_loss(cut, short))
    assert torch.allclose(task.score(long, row), task.score(cut, short), atol=1e-5)
    assert torch.allclose(task.features(row), task.features(short), atol=1e-6)


def test_the_network_is_causal(task, batch):
    ids = batch["input_ids"][:1].clone()
    before = task.network(ids)
    ids[0, 4] = (ids[0, 4] + 1) % 11
    after = task.network(ids)
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_rotary_positions_are_relative(task):
    ids = torch.tensor([[1, 2, 3, 4]])
    first = task.network(ids)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    padded = task.network(torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], 1), mask)
    assert torch.allclose(first, padded[:, 2:], atol=1e-5)


def test_random_targets_keep_what_is_not_labelled(task, batch):
    drawn = task.random_targets(batch)
    assert torch.equal(drawn["labels"] == IGNORE, batch["labels"] == IGNORE)
    assert torch.equal(drawn["input_ids"], batch["input_ids"])
    assert not torch.equal(drawn["labels"], batch["labels"])


def test_outputs_with_logits_are_taken_as_they_are(batch):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TinyLlama(11, 8, 1, 2)

        def forward(self, input_ids, attention_mask=None):
            return type("Output", (), {"logits": self.inner(input_ids, attention_mask)})()

    wrapped = CausalLMTask(Wrapped())
    plain = CausalLMTask(wrapped.network.inner)
    assert torch.equal(wrapped(batch), plain(batch))
