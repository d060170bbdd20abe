import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from erasus_pl.linalg import (
    PerSampleGradients,
    flatten,
    gradient_dots,
    gradient_norms,
    per_sample_gradients,
    trainable_parameters,
)


class Network(nn.Module):
    """A network given by its parts and a function from them and a batch to outputs (B, C)."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, batch):
        return self.run(self, batch["input"])

    def losses(self, batch):
        return F.cross_entropy(self(batch), batch["target"], reduction="none")


class Root(nn.Module):
    """A weight-only layer such as Llama's."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def image_network(groups=1, **convolution):
    return Network(
        lambda s, x: s.head(F.relu(s.second(s.norm(s.first(x)))).mean((2, 3))),
        first=nn.Conv2d(2, 4, 3, **convolution),
        norm=nn.BatchNorm2d(4),
        second=nn.Conv2d(4, 4, 2, groups=groups, bias=False),
        head=nn.Linear(4, 3),
    )


def tied(s, ids):
    hidden = torch.tanh(s.inner(s.table(ids)))
    return s.head(hidden).mean(1)


def tied_network(padding=None):
    network = Network(
        tied,
        table=nn.Embedding(7, 5, padding_idx=padding),
        inner=nn.Linear(5, 5),
        head=nn.Linear(5, 7, bias=False),
    )
    network.head.weight = network.table.weight
    return network


def positions(s, ids):
    place = s.place(torch.arange(ids.shape[1]))
    return s.head(torch.tanh(s.table(ids) + place)).mean(1)


GHOST = {
    "mlp": (
        lambda: Network(
            lambda s, x: s.b(s.act(s.a(x))),
            a=nn.Linear(6, 8),
            act=nn.ReLU(inplace=True),
            b=nn.Linear(8, 3, bias=False),
        ),
        (6,),
    ),
    "sequence, gram": (
        lambda: Network(
            lambda s, x: s.b(torch.tanh(s.a(x))).mean(1), a=nn.Linear(6, 20), b=nn.Linear(20, 3)
        ),
        (3, 6),
    ),
    "sequence, direct": (
        lambda: Network(
            lambda s, x: s.b(torch.tanh(s.a(x))).mean((1, 2)), a=nn.Linear(3, 4), b=nn.Linear(4, 3)
        ),
        (9, 2, 3),
    ),
    "layer used twice": (
        lambda: Network(
            lambda s, x: s.b(torch.tanh(s.a(torch.tanh(s.a(x))))),
            a=nn.Linear(6, 6),
            b=nn.Linear(6, 3),
        ),
        (6,),
    ),
    "layer never used": (
        lambda: Network(lambda s, x: s.a(x), a=nn.Linear(6, 3), b=nn.Linear(6, 3)),
        (6,),
    ),
    "normalisations": (
        lambda: Network(
            lambda s, x: s.b(s.root(torch.tanh(s.layer(s.a(x))))).mean(1),
            a=nn.Linear(6, 8),
            layer=nn.LayerNorm(8),
            root=nn.RMSNorm(8),
            b=nn.Linear(8, 3),
        ),
        (4, 6),
    ),
    "own layers": (
        lambda: Network(
            lambda s, x: s.b(s.slope(s.root(s.a(x)))),
            a=nn.Linear(6, 8),
            root=Root(8),
            slope=nn.PReLU(8),
            b=nn.Linear(8, 3),
        ),
        (6,),
    ),
    "own layer used twice": (
        lambda: Network(
            lambda s, x: s.b(s.root(torch.tanh(s.root(x)))), root=Root(6), b=nn.Linear(6, 3)
        ),
        (6,),
    ),
    "norm over two axes": (
        lambda: Network(
            lambda s, x: s.b(s.norm(x)).mean((1, 2)), norm=nn.LayerNorm((4, 6)), b=nn.Linear(6, 3)
        ),
        (2, 4, 6),
    ),
    "convolution": (lambda: image_network(stride=2, padding=1), (2, 9, 8)),
    "grouped, dilated, same": (
        lambda: image_network(groups=2, dilation=2, padding="same", padding_mode="circular"),
        (2, 6, 5),
    ),
    "depthwise": (lambda: image_network(groups=4, bias=False), (2, 6, 7)),
    "convolution in one dimension": (
        lambda: Network(
            lambda s, x: s.head(s.group(torch.tanh(s.first(x))).mean(2)),
            first=nn.Conv1d(2, 6, 3, stride=2, padding=2, groups=2),
            group=nn.GroupNorm(3, 6),
            head=nn.Linear(6, 3),
        ),
        (2, 8),
    ),
    "convolution in three": (
        lambda: Network(
            lambda s, x: s.head(torch.tanh(s.first(x)).mean((2, 3, 4))),
            first=nn.Conv3d(1, 4, 2),
            head=nn.Linear(4, 3),
        ),
        (1, 3, 4, 3),
    ),
}
TEXT = {
    "tied embedding": tied_network,
    "tied with padding": lambda: tied_network(padding=0),
    "positions for all": lambda: Network(
        lambda s, ids: s.head(
            torch.tanh(s.table(ids) + s.place(torch.arange(ids.shape[1])[None]))
        ).mean(1),
        table=nn.Embedding(7, 5),
        place=nn.Embedding(9, 5),
        head=nn.Linear(5, 3),
    ),
}


def batch_of(shape, samples=5, classes=3):
    return {
        "input": torch.randn(samples, *shape, dtype=torch.float64),
        "target": torch.randint(classes, (samples,)),
        "index": torch.arange(samples),
    }


def text_of(samples=5, steps=4, classes=3):
    return {
        "input": torch.randint(7, (samples, steps)),
        "target": torch.randint(classes, (samples,)),
    }


def ready(network):
    network = network.double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
    return network


def by_hand(network, batch):
    """(B, P) gradients, one backward pass for each sample."""
    parameters = list(trainable_parameters(network).values())
    samples = len(batch["target"])
    found = []
    for i in range(samples):
        item = {key: value[i : i + 1] for key, value in batch.items()}
        grads = torch.autograd.grad(network.losses(item).sum(), parameters, materialize_grads=True)
        found.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(found)


def check(network, batch, method, expected_method=None):
    truth = by_hand(network, batch)
    found = PerSampleGradients(network, network.losses, method)
    vector = torch.randn(truth.shape[1], dtype=torch.float64)
    torch.testing.assert_close(found.norms(batch), truth.norm(dim=1))
    torch.testing.assert_close(found.dots(batch, vector), truth @ vector)
    torch.testing.assert_close(flatten(found.squares(batch)), truth.square().sum(0))
    torch.testing.assert_close(flatten(found.magnitudes(batch)), truth.abs().sum(0))
    gradients = found.gradients(batch)
    torch.testing.assert_close(torch.cat([g.flatten(1) for g in gradients.values()], 1), truth)
    assert found.method == (expected_method or method)
    assert all(p.grad is None for p in network.parameters())
    return found


@pytest.mark.parametrize("method", ["ghost", "vmap", "loop"])
@pytest.mark.parametrize("case", GHOST)
def test_every_route_gives_the_gradients_of_single_backwards(case, method):
    torch.manual_seed(0)
    make, shape = GHOST[case]
    check(ready(make()), batch_of(shape), method)


@pytest.mark.parametrize("method", ["ghost", "vmap"])
@pytest.mark.parametrize("case", TEXT)
def test_embeddings_and_tied_weights(case, method):
    torch.manual_seed(0)
    network = ready(TEXT[case]())
    batch = text_of()
    batch["input"][0, :2] = 0
    batch["input"][1] = 3  # one row looked up at every step
    check(network, batch, method)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 5),
    steps=st.integers(1, 6),
    width=st.integers(1, 7),
    hidden=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_norms_for_any_shape(samples, steps, width, hidden, seed):
    torch.manual_seed(seed)
    network = ready(
        Network(
            lambda s, x: s.b(torch.tanh(s.a(x))).sum(1),
            a=nn.Linear(width, hidden),
            b=nn.Linear(hidden, 3),
        )
    )
    batch = batch_of((steps, width), samples)
    norms = gradient_norms(network, network.losses, batch, "ghost")
    torch.testing.assert_close(norms, by_hand(network, batch).norm(dim=1))


@settings(max_examples=15, deadline=None)
@given(
    channels=st.sampled_from([(2, 4, 2), (3, 3, 3), (2, 3, 1), (4, 2, 1)]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_convolution_norms_for_any_geometry(channels, kernel, stride, padding, dilation, seed):
    torch.manual_seed(seed)
    inner, outer, groups = channels
    conv = nn.Conv2d(inner, outer, kernel, stride, padding, dilation, groups)
    network = ready(
        Network(
            lambda s, x: s.head(s.conv(x).tanh().flatten(2).sum(2)),
            conv=conv,
            head=nn.Linear(outer, 3),
        )
    )
    batch = batch_of((inner, 7, 6), 3)
    norms = gradient_norms(network, network.losses, batch, "ghost")
    torch.testing.assert_close(norms, by_hand(network, batch).norm(dim=1))


def test_frozen_parameters_do_not_count():
    torch.manual_seed(0)
    network = ready(GHOST["convolution"][0]())
    network.first.requires_grad_(False)
    network.norm.weight.requires_grad_(False)
    network.head.bias.requires_grad_(False)
    check(network, batch_of((2, 9, 8)), "auto", "ghost")
    assert not network.first.weight.requires_grad


def functional_use(s, x):
    return s.b(torch.tanh(s.a(x))) + F.linear(torch.tanh(F.linear(x, s.a.weight)), s.b.weight)


REFUSED = {
    "a weight used outside its layer": (
        lambda: Network(functional_use, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        lambda: batch_of((6,)),
    ),
    "a weight used only outside its layer": (
        lambda: Network(
            lambda s, x: F.linear(torch.tanh(F.linear(x, s.a.weight)), s.b.weight),
            a=nn.Linear(6, 8, bias=False),
            b=nn.Linear(8, 3, bias=False),
        ),
        lambda: batch_of((6,)),
    ),
    "positions as long as the batch": (
        lambda: Network(
            positions, table=nn.Embedding(7, 5), place=nn.Embedding(9, 5), head=nn.Linear(5, 3)
        ),
        lambda: text_of(samples=4, steps=4),
    ),
    "positions shorter than the batch": (
        lambda: Network(
            positions, table=nn.Embedding(7, 5), place=nn.Embedding(9, 5), head=nn.Linear(5, 3)
        ),
        lambda: text_of(samples=5, steps=3),
    ),
    "attention": (
        lambda: Network(
            lambda s, x: s.head(s.mix(x, x, x, need_weights=False)[0].mean(1)),
            mix=nn.MultiheadAttention(6, 2, batch_first=True),
            head=nn.Linear(6, 3),
        ),
        lambda: batch_of((4, 6)),
    ),
    "a reparametrised weight": (
        lambda: Network(
            lambda s, x: s.a(x), a=nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
        ),
        lambda: batch_of((6,)),
    ),
    "relu in place on a view": (
        lambda: Network(
            lambda s, x: s.b(F.relu(s.a(x), inplace=True)).mean(1),
            a=nn.Linear(6, 8),
            b=nn.Linear(8, 3),
        ),
        lambda: batch_of((4, 6)),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_hooks_cannot_follow_is_still_exact(case):
    torch.manual_seed(0)
    make, batch = REFUSED[case]
    network = ready(make())
    found = check(network, batch(), "auto", "vmap")
    assert found.reason
    with pytest.raises(ValueError, match="ghost gradients do not apply"):
        gradient_norms(network, network.losses, batch(), "ghost")


def test_an_input_changed_in_place_is_refused():
    def run(s, x):
        hidden = torch.tanh(x)
        out = s.a(hidden)
        hidden.add_(1)
        return out

    network = ready(Network(run, a=nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="changed in place"):
        gradient_norms(network, network.losses, batch_of((6,)), "ghost")


def test_control_flow_on_values_ends_in_the_loop():
    def run(s, x):
        mixed = s.mix(x, x, x)[0].mean(1)
        return s.head(mixed if mixed.sum().item() > 0 else 2 * mixed)

    torch.manual_seed(0)
    network = Network(run, mix=nn.MultiheadAttention(6, 2, batch_first=True), head=nn.Linear(6, 3))
    found = check(ready(network), batch_of((4, 6)), "auto", "loop")
    assert "item" in found.reason


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_chunks_change_nothing(method):
    torch.manual_seed(0)
    network = ready(GHOST["mlp"][0]())
    batch = batch_of((6,), samples=7)
    truth = by_hand(network, batch).norm(dim=1)
    for chunk in (1, 3, 7, 100):
        found = PerSampleGradients(network, network.losses, method, chunk)
        torch.testing.assert_close(found.norms(batch), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_on_the_ghost_route(dtype):
    torch.manual_seed(0)
    network = ready(GHOST["sequence, gram"][0]())
    batch = batch_of((3, 6), samples=32)
    truth = by_hand(network, batch).norm(dim=1)
    found = PerSampleGradients(network.to(dtype), network.losses)
    norms = found.norms(batch | {"input": batch["input"].to(dtype)})
    assert found.method == "ghost"
    assert norms.dtype == torch.float32
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(norms.double(), truth, rtol=tolerance, atol=tolerance)


def test_autocast_stays_on_the_ghost_route():
    torch.manual_seed(0)
    network = ready(GHOST["mlp"][0]()).float()
    batch = batch_of((6,), samples=32)
    batch["input"] = batch["input"].float()
    truth = gradient_norms(network, network.losses, batch)
    found = PerSampleGradients(network, network.losses)
    with torch.autocast("cpu", torch.bfloat16):
        norms = found.norms(batch)
    assert found.method == "ghost"
    torch.testing.assert_close(norms, truth, rtol=0.1, atol=0.02)


def test_recomputed_activations_are_counted_once():
    def run(s, x):
        hidden = torch.utils.checkpoint.checkpoint(
            lambda x: torch.tanh(s.a(x)), x, use_reentrant=False
        )
        return s.b(hidden)

    torch.manual_seed(0)
    network = ready(Network(run, a=nn.Linear(6, 8), b=nn.Linear(8, 3)))
    check(network, batch_of((6,)), "ghost")


def test_weight_stored_input_first():
    class Conv1D(nn.Module):
        def __init__(self, given, made):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(given, made))
            self.bias = nn.Parameter(torch.randn(made))

        def forward(self, x):
            return x @ self.weight + self.bias

    Conv1D.__module__ = "transformers.pytorch_utils"
    torch.manual_seed(0)
    network = Network(
        lambda s, x: s.b(torch.tanh(s.a(x))).mean(1), a=Conv1D(6, 9), b=nn.Linear(9, 3)
    )
    check(ready(network), batch_of((4, 6)), "ghost")


@pytest.mark.parametrize("method", ["ghost", "vmap", "loop"])
def test_nothing_is_left_behind(method):
    torch.manual_seed(0)
    network = ready(GHOST["convolution"][0]())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batch = batch_of((2, 9, 8))
    state = torch.get_rng_state()
    with torch.no_grad():
        gradient_norms(network, network.losses, batch, method)
        gradient_dots(
            network, network.losses, batch, flatten(trainable_parameters(network)), method
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert not network.training


def test_entries_that_are_not_tensors_are_passed_on():
    torch.manual_seed(0)
    network = ready(GHOST["mlp"][0]())
    batch = batch_of((6,))
    truth = by_hand(network, batch)
    batch |= {"split": "forget", "temperature": torch.tensor(1.0)}
    for method in ("ghost", "vmap", "loop"):
        grads = per_sample_gradients(network, network.losses, batch, method)
        torch.testing.assert_close(torch.cat([g.flatten(1) for g in grads.values()], 1), truth)


def test_errors_say_what_to_do():
    network = ready(GHOST["convolution"][0]())
    batch = batch_of((2, 9, 8))
    with pytest.raises(ValueError, match=r"`method` must be one of .* got 'fast'"):
        PerSampleGradients(network, network.losses, "fast")
    with pytest.raises(ValueError, match="one loss for each of 5 samples"):
        gradient_norms(network, lambda b: network.losses(b).mean(), batch)
    with pytest.raises(ValueError, match="depend on no trainable parameter"):
        gradient_norms(network, lambda b: network.losses(b).detach(), batch)
    with pytest.raises(ValueError, match="leading batch dimension"):
        gradient_norms(network, network.losses, {"name": "none"})
    network.norm.train()
    with pytest.raises(ValueError, match="`norm` normalises by the statistics of the batch"):
        gradient_norms(network, network.losses, batch)
    network.eval().requires_grad_(False)
    with pytest.raises(ValueError, match="unfreeze"):
        gradient_norms(network, network.losses, batch)
