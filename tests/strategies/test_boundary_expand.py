"""The shadow class is a class of a wider head while it learns, and nothing afterwards."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erasus_pl.strategies import BoundaryExpand
from erasus_pl.strategies.boundary_expand import shadow_loss


def sgd(lr, momentum=0.9):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum)


def test_loss_is_cross_entropy_of_the_wider_head():
    torch.manual_seed(0)
    logits = 5 * torch.randn(40, 7, dtype=torch.float64)
    shadow = 5 * torch.randn(40, dtype=torch.float64)
    wide = torch.cat([logits, shadow.unsqueeze(-1)], -1)
    expected = F.cross_entropy(wide, torch.full((40,), 7), reduction="none")
    torch.testing.assert_close(shadow_loss(logits, shadow), expected)
    assert shadow_loss(torch.tensor([[900.0, 0.0]]), torch.tensor([-900.0])).item() == 1800


class Wide(nn.Module):
    """The network with a row more in its head, as the paper builds it."""

    def __init__(self, task, shadow):
        super().__init__()
        self.body = copy.deepcopy(task.network[:-1])
        head = task.network[-1]
        self.head = nn.Linear(head.in_features, head.out_features + 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.cat([head.weight, shadow[None, :-1]]))
            self.head.bias.copy_(torch.cat([head.bias, shadow[-1:]]))

    def forward(self, x):
        return self.head(self.body(x))


def test_equals_training_a_wider_network_and_cutting_the_unit_off(tiny, fit):
    if tiny.name == "text":
        pytest.skip("the wider network is built for class labels")
    tiny.task.network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    data = tiny.data(batch_size=100)
    start = fit(BoundaryExpand(copy.deepcopy(tiny.task), sgd(0.1), seed=3), data, max_steps=0)
    wide = Wide(tiny.task, start.shadow.detach())
    strategy = fit(
        BoundaryExpand(copy.deepcopy(tiny.task), sgd(0.1), seed=3), tiny.data(batch_size=100), 4
    )
    (batch,) = data.sweep(data.forget_set)
    optimizer = sgd(0.1)(wide.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(wide(batch["input"]), torch.full((16,), 4)).backward()
        optimizer.step()
    torch.testing.assert_close(strategy.task.network[-1].weight, wide.head.weight[:-1])
    torch.testing.assert_close(strategy.task.network[0].weight, wide.body[0].weight)
    torch.testing.assert_close(strategy.shadow[:-1], wide.head.weight[-1])
    torch.testing.assert_close(strategy.shadow[-1], wide.head.bias[-1])


def test_text_loss_is_the_mean_over_labelled_tokens_of_a_sequence(tiny, fit):
    if tiny.name == "images":
        pytest.skip("images have one label")
    strategy = fit(BoundaryExpand(tiny.task, seed=3), tiny.data(), max_steps=0).eval()
    data = tiny.data(batch_size=100)
    data.setup("validate")
    (batch,) = data.sweep(data.forget_set)
    network, per_sequence = strategy.task.network, []
    body = copy.deepcopy(network)
    body.head = nn.Identity()
    hidden = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    rows = torch.cat([network.head.weight, strategy.shadow[None, :-1]])
    bias = torch.zeros(12)
    bias[-1] = strategy.shadow[-1].item()
    for states, labels in zip(hidden, batch["labels"], strict=True):
        kept = [t for t in range(6) if labels[t + 1] != -100]
        logits = states[kept] @ rows.T + bias
        per_sequence.append(F.cross_entropy(logits, torch.full((len(kept),), 11)))
    found = strategy.unlearning_losses(batch, None)["forget_shadow"]
    torch.testing.assert_close(found, torch.stack(per_sequence).mean())


def test_the_unit_follows_its_seed_and_is_no_part_of_the_model(tiny, fit):
    shadows = [
        fit(BoundaryExpand(copy.deepcopy(tiny.task), seed=s), tiny.data(), max_steps=0).shadow
        for s in (1, 1, 2)
    ]
    assert torch.equal(shadows[0], shadows[1])
    assert not torch.equal(shadows[0], shadows[2])
    assert shadows[0].abs().max() <= tiny.task.head.in_features**-0.5
    strategy = fit(BoundaryExpand(copy.deepcopy(tiny.task), sgd(0.1)), tiny.data())
    shapes = {k: v.shape for k, v in tiny.task.state_dict().items()}
    assert {k: v.shape for k, v in strategy.task.state_dict().items()} == shapes


def test_on_digits_it_forgets_the_class_and_keeps_the_rest(digits, fit):
    strategy = BoundaryExpand(copy.deepcopy(digits.original), sgd(0.002))
    found = digits.measure(fit(strategy, digits.data(), max_epochs=10))
    assert abs(found["forget"] - digits.retrained["forget"]) <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.04, found
