"""DVRL: a network learns what each sample is worth from how well a predictor does without it.

Yoon, Arik and Pfister, "Data Valuation using Reinforcement Learning" (ICML 2020,
arXiv:1909.11671): a data value estimator h_phi gives each sample a probability of being selected, a
predictor is trained on the samples that were drawn, and its loss L on held data is the signal by
which h_phi learns (eq. 4 and Alg. 1),

    phi <- phi - beta (L - delta) grad_phi sum_i log Bernoulli(s_i; h_phi(x_i, y_i)),

with a moving average delta of L as baseline. Here the predictor is the ridge fit of the last layer
(``_heads``), so a draw is answered exactly and at once.

The estimator is that of the authors' code: a perceptron on features and one-hot label, whose last
two layers also see how far the label is from what a predictor of the held set says of the sample;
and so is the penalty that keeps the mean probability within [0.1, 0.9]. A sequence is seen by the
mean over its labelled tokens.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from erasus_pl.selectors._heads import Game, check_game, fit, play, worth
from erasus_pl.selectors._rows import watch
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["DVRL", "Estimator", "exploration", "reinforce"]

_MEMORY = 20
_EDGE = 0.1
_PENALTY = 1e3


def reinforce(logits: Tensor, selections: Tensor, losses: Tensor, baseline: float) -> Tensor:
    """Scalar whose gradient is REINFORCE's estimate of that of the expected loss (eq. 4).

    ``mean_k (L_k - delta) sum_i log Bernoulli(s_ki; sigmoid(logits_i))``.

    Args:
        logits: ``(n,)`` of the probability of being selected.
        selections: ``(K, n)`` of 0 and 1, drawn by them.
        losses: ``(K,)`` of the predictors that were trained on them.
        baseline: ``delta``.
    """
    chances = -F.binary_cross_entropy_with_logits(
        logits.expand_as(selections), selections, reduction="none"
    )
    return ((losses - baseline).detach() * chances.sum(1)).mean()


def exploration(probabilities: Tensor) -> Tensor:
    """How far the mean of ``(n,)`` probabilities is outside of [0.1, 0.9]; a scalar, 0 within."""
    mean = probabilities.mean()
    return (mean - (1 - _EDGE)).clamp(min=0) + (_EDGE - mean).clamp(min=0)


class Estimator(nn.Module):
    """Logit of each sample's value.

    Args:
        inputs: of the features and one-hot labels, concatenated.
        classes: of the difference from the held set's predictor.
        hidden: width of the layers.
        layers: their number, at least 3, the last included.
        joint: width of the layers that see the difference.
    """

    def __init__(
        self, inputs: int, classes: int, hidden: int = 100, layers: int = 5, joint: int = 10
    ) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 2), joint]
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [nn.Linear(before, after), nn.ReLU()]
        self.body = nn.Sequential(*parts)
        self.end = nn.Sequential(nn.Linear(joint + classes, joint), nn.ReLU(), nn.Linear(joint, 1))

    def forward(self, samples: Tensor, differences: Tensor) -> Tensor:
        """``(n,)`` of samples ``(n, inputs)`` and differences ``(n, classes)``."""
        return self.end(torch.cat([self.body(samples), differences], 1)).squeeze(1)


class DVRL(Selector):
    """Keep the samples that a value network, taught by reinforcement, thinks most of.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        target: set whose prediction is the performance: retain or holdout.
        iterations: steps of the value network, the authors' 1000.
        lr: of Adam, the authors' 0.01.
        hidden: width of the value network, the authors' 100.
        layers: of the value network, the authors' 5, at least 3.
        ridge: of the predictor, in samples of mean squared length.
        samples: of the target set, drawn uniformly; all of them where there are fewer.
        seed: of the network, the selections and that draw.
    """

    requires: ClassVar[tuple[str, ...]] = ("targets", "features")
    paper: ClassVar[dict[str, Any]] = {
        "title": "Data Valuation using Reinforcement Learning",
        "year": 2020,
        "arxiv": "1909.11671",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        target: Literal["retain", "holdout"] = "retain",
        iterations: int = 1000,
        lr: float = 0.01,
        hidden: int = 100,
        layers: int = 5,
        ridge: float = 1.0,
        samples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        check_game(target, samples, ridge)
        for name, value, least in (
            ("iterations", iterations, 1), ("hidden", hidden, 1), ("layers", layers, 3),
        ):  # fmt: skip
            if value < least:
                msg = f"`{name}` must be at least {least}, got {value}"
                raise ValueError(msg)
        if not lr > 0:
            msg = f"`lr` must be positive, got {lr}"
            raise ValueError(msg)
        self.target = target
        self.iterations = iterations
        self.lr = lr
        self.hidden = hidden
        self.layers = layers
        self.ridge = ridge
        self.samples = samples

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Logit of each sample's value, ``(n,)``."""
        with torch.no_grad():
            game = play(self, strategy, dataset, self.target, self.samples, self.ridge)
        return self.learn(game, strategy)

    def learn(self, game: Game, strategy: Strategy) -> Tensor:
        """Logit of each sample's value in a game, ``(n,)``."""
        samples, differences = _inputs(game)
        generator = torch.Generator().manual_seed(self.seed)
        network = Estimator(samples.shape[1], game.classes, self.hidden, self.layers)
        network.to(samples)
        optimizer = torch.optim.Adam(network.parameters(), self.lr, fused=True)
        baseline: float | None = None
        with torch.enable_grad():
            for _ in watch(range(self.iterations), strategy, "DVRL"):
                logits = network(samples, differences)
                chances = logits.detach().sigmoid()
                drawn = torch.rand(1, len(chances), generator=generator).to(chances)
                selections = (drawn < chances).to(chances)
                losses = 1 - worth(fit(game, selections), game)
                baseline = float(losses) if baseline is None else baseline
                signal = reinforce(logits, selections, losses, baseline)
                loss = signal + _PENALTY * exploration(logits.sigmoid())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                baseline += (float(losses) - baseline) / _MEMORY
        return network(samples, differences).detach()


def _inputs(game: Game) -> tuple[Tensor, Tensor]:
    """Features and one-hot label ``(n, d + C)``, and how far it is from the held set's ``(n, C)``.

    Means over the rows of a sample.
    """
    hot = game.one_hot(game.labels)
    count = (game.labels >= 0).sum(1).clamp(min=1)[:, None]
    eye = torch.eye(len(game.gram), dtype=hot.dtype, device=hot.device)
    held = torch.linalg.solve(game.gram + game.ridge / len(game.features) * eye, game.cross)
    far = (hot - game.features @ held).abs() * (game.labels >= 0).unsqueeze(-1)
    samples = torch.cat([game.features, hot], 2)
    return samples.sum(1) / count, far.sum(1) / count
