"""Many seeds of small networks on scikit-learn's digits, trained side by side, for forget requests.

All models of one request train at once as one stacked network: weights have a first axis for the
model. Originals train on all of the data, retrained models on the retain set, each from a seed of
its own and in an order of its own.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from erasus_pl.evaluation.evidence import ModelRecord

__all__ = ["REGIMES", "Models", "Network", "train_for"]

TRAINED, FEW, TEMPERATURES = 1197, 300, (3.0, 10.0, 1000.0)
NOISE = {"mislabelled 10 %": 0.1, "random 5 %, 10 % noise": 0.1, "random 5 %, 20 % noise": 0.2,
         "random 20 %, 20 % noise": 0.2, "few, noise": 0.2}  # fmt: skip
# regime → requests, whether the verdict is told of a random draw
REGIMES: dict[str, tuple[tuple[str, ...], bool]] = {
    "class": (("class 1", "class 3", "class 6", "class 8"), False),
    "mislabelled": (("mislabelled 5 %", "mislabelled 10 %"), False),
    "random_noisy": (
        ("random 5 %, 10 % noise", "random 5 %, 20 % noise", "random 20 %, 20 % noise"),
        True,
    ),
    "random_clean": (("random 5 %", "random 20 %"), True),
    "random_unknown": (("random 5 %", "random 20 %", "random 20 %, 20 % noise"), False),
    "few_trained": (("few", "few, noise"), True),
    "ten_samples": (("ten", "few, ten"), True),
    "cluster": (("near 30", "near 40", "near 50", "near 60", "cell"), False),
    "part": (("half of class 5", "brightest 8 %"), False),
}


@dataclass(frozen=True)
class Network:
    """One network and its schedule.

    Args:
        hidden: widths of the hidden layers.
        epochs: of training; twice as many with label noise, three times with few samples.
        lr: of Adam.
        seed: of the split, the requests and the models.
    """

    hidden: tuple[int, ...]
    epochs: int
    lr: float
    seed: int


@dataclass
class Models:
    """The models of one request, measured.

    Attributes:
        originals, retrained: one record each.
        scaled: for each original its logits divided by 3, 10 and 1000.
        broken: for each original a random network, one of NaN, and it after gradient ascent.
    """

    originals: list[ModelRecord]
    retrained: list[ModelRecord]
    scaled: list[list[ModelRecord]]
    broken: list[list[ModelRecord]]


def forward(weights: list[Any], x: Any) -> Any:
    """Logits `(M, B, 10)` of M stacked networks for `(M, B, 64)`."""
    for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = torch.baddbmm(bias, x, matrix).relu()
    return torch.baddbmm(weights[-1], x, weights[-2])


def fresh(count: int, hidden: tuple[int, ...], generator: torch.Generator) -> list[Any]:
    """`count` random networks, drawn as `nn.Linear` draws."""
    widths, weights = (64, *hidden, 10), []
    for fan, width in pairwise(widths):
        for rows in (fan, 1):
            drawn = torch.rand(count, rows, width, generator=generator)
            weights.append((2 * drawn - 1) / math.sqrt(fan))
    return weights


def train(
    weights: list[Any], data: tuple[Any, Any], epochs: int, lr: float, seed: int, sign: float = 1.0
) -> list[Any]:
    """Adam on batches of 64, every network in an order of its own; ascent where `sign` is -1."""
    x, y = data
    weights = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.Adam(weights, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.rand(len(weights[0]), len(x), generator=generator).argsort(1)
        for batch in order.split(64, dim=1):
            losses = F.cross_entropy(forward(weights, x[batch]).mT, y[batch], reduction="none")
            optimizer.zero_grad()
            (sign * losses.mean(1).sum()).backward()
            optimizer.step()
    return [w.detach() for w in weights]


@torch.no_grad()
def measure(weights: list[Any], parts: dict[str, tuple[Any, Any]]) -> list[ModelRecord]:
    """Logit-scaled confidence and right answers of each stacked network on each split."""
    found = [ModelRecord("model", None) for _ in weights[0]]
    for split, (x, y) in parts.items():
        logits = forward(weights, x.expand(len(found), -1, -1))
        label = y.expand(len(found), -1)[..., None]
        right = logits.gather(2, label).squeeze(2)
        others = logits.scatter(2, label, -math.inf).logsumexp(2)
        hits = logits.argmax(2) == y
        for record, phi, hit in zip(found, (right - others).double(), hits.double(), strict=True):
            record.scores[split], record.correct[split] = phi.numpy(), hit.numpy()
    return found


def split(request: str, seed: int) -> dict[str, tuple[Any, Any]]:
    """The data of a request as `forget`, `retain`, `test`, `holdout`: `(n, 64)` and `(n,)`.

    A class or an attribute is looked up in the held-out data too: what matches is the holdout set,
    as in the datamodules. Label noise is in all of the data, except where only 5 % of the training
    set is mislabelled. Held-out data of other requests is halved.
    """
    images, target = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), target.copy()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    train, held = order[:TRAINED], order[TRAINED:]
    if request.startswith("few"):
        train = train[:FEW]
    wrong = np.zeros(len(y), dtype=bool)
    if request == "mislabelled 5 %":
        wrong[rng.choice(train, len(train) // 20, replace=False)] = True
    elif request in NOISE:
        wrong = rng.random(len(y)) < NOISE[request]
    y[wrong] = (y[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    matching = named(request, x, y)
    if matching is None:
        forget = (
            wrong[train] if request.startswith("mislabelled") else drawn(request, x[train], rng)
        )
        test, holdout = held[: len(held) // 2], held[len(held) // 2 :]
    else:
        forget, test, holdout = matching[train], held[~matching[held]], held[matching[held]]
        if request.startswith("half"):
            forget &= np.cumsum(forget) % 2 == 1
    rows = {"forget": train[forget], "retain": train[~forget], "test": test, "holdout": holdout}
    return {k: (torch.from_numpy(x[v]), torch.from_numpy(y[v])) for k, v in rows.items()}


def named(request: str, x: Any, y: Any) -> Any:
    """Whom a class or an attribute names, `(n,)`; None for other requests."""
    if "class" in request:
        return y == int(request[-1])
    if request.startswith("brightest"):
        light = x.mean(1)
        return light > np.quantile(light, 0.92)
    return None


def drawn(request: str, x: Any, rng: np.random.Generator) -> Any:
    """Which of the training samples `(n, 64)` a list of positions names, `(n,)`."""
    n, kind = len(x), request.split(",")[0]
    if kind == "cell":
        return KMeans(20, n_init=3, random_state=0).fit_predict(x) == rng.integers(20)
    if kind.startswith("near"):
        far = ((x - x[rng.integers(n)]) ** 2).sum(1)
        return np.argsort(np.argsort(far)) < int(kind[-2:])
    size = 10 if "ten" in request else n // 20 if kind == "random 5 %" else n // 5
    return rng.permutation(n) < size


def train_for(
    request: str, network: Network, counts: tuple[int, int], kept: dict[Any, list[Any]]
) -> Models:
    """Train originals and retrained models of one request, and measure them with what is judged.

    Args:
        request: one of those in `REGIMES`.
        network: to train.
        counts: of originals and retrained models.
        kept: originals of other requests on the same data, which are not trained again.
    """
    parts = split(request, network.seed)
    whole = tuple(torch.cat([parts[k][i] for k in ("forget", "retain")]) for i in (0, 1))
    epochs = network.epochs * (
        3 if request.startswith("few") else 2 if NOISE.get(request) or "mis" in request else 1
    )
    generator = torch.Generator().manual_seed(network.seed)
    first, second, third = (fresh(n, network.hidden, generator) for n in (*counts, counts[0]))
    noisy = request if request in NOISE or request.startswith("mislabelled") else "clean"
    key = (network, noisy, len(whole[0]))
    if key not in kept:
        kept[key] = train(first, whole, epochs, network.lr, network.seed + 1)
    originals = kept[key]
    retrained = train(second, parts["retain"], epochs, network.lr, network.seed + 2)
    collapsed = train(originals, parts["forget"], 60, 0.02, network.seed + 3, sign=-1.0)
    cooled = [
        measure([*originals[:-2], *(w / t for w in originals[-2:])], parts) for t in TEMPERATURES
    ]
    broken = [
        measure(weights, parts) for weights in (third, [w * math.nan for w in third], collapsed)
    ]
    return Models(
        measure(originals, parts),
        measure(retrained, parts),
        [list(one) for one in zip(*cooled, strict=True)],
        [list(one) for one in zip(*broken, strict=True)],
    )
