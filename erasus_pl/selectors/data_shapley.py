"""Data Shapley: what each sample adds to a learner, over the coalitions it can come into.

Ghorbani and Zou, "Data Shapley: Equitable Valuation of Data for Machine Learning" (ICML 2019,
arXiv:1904.02868), eq. 1, by truncated Monte Carlo, their Alg. 1: samples enter in a random order,
each is credited with the change of the performance V that it makes, and once V is within a
tolerance of that of all samples the rest of the order is credited with nothing. Permutations are
drawn until the values settle: ``mean_i |phi_i^t - phi_i^(t-100)| / |phi_i^t| < 0.05``.

The paper learns a head on the features of a network; here the head is the ridge fit of the last
layer, and V one less the mean squared error of its prediction of one-hot labels on held rows
(``_heads``), which needs no training: samples enter by recursive least squares, exactly, and all
orders of a batch advance together. The players are the samples of the forget set; a sequence
enters with all of its labelled tokens.
"""

import warnings
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._heads import Game, check_game, fit, play, worth
from erasus_pl.selectors._rows import watch
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["DataShapley", "marginals"]

_WINDOW = 100
_BUDGET = 2**24
_ROWS = 64


def marginals(game: Game, permutations: Tensor, tolerance: float = 0.0) -> Tensor:
    """What each sample adds to V in each order, ``(P, n)``; their mean estimates the values.

    The mean over all n! orders is eq. 1, and every row sums to the worth of all samples, but for
    what was truncated (Alg. 1).

    Args:
        game: n samples.
        permutations: ``(P, n)`` orders in which they enter.
        tolerance: an order ends where V differs from that of all samples by less than this part
            of it; 0 ends none.
    """
    players, _, d = game.features.shape
    whole = worth(fit(game, game.features.new_ones(1, players)), game)[0]
    step = max(1, _BUDGET // (d * (d + game.classes)))
    parts = [_enter(game, p, whole, tolerance) for p in permutations.split(step)]
    return torch.cat(parts)


def _enter(game: Game, orders: Tensor, whole: Tensor, tolerance: float) -> Tensor:
    """The same for orders that fit in memory, a block of samples at a time.

    Of a block's rows ``X``, with ``A`` the head's inverse before it, ``L L^T = I + X A X^T``, ``q =
    L^-1 X A`` and ``z = L^-1 (Y - X W)``, row i moves the head by ``q_i z_i^T`` and the inverse by
    ``-q_i q_i^T``: Cholesky factors take rows in turn, as recursive least squares does.
    """
    count, players = orders.shape
    _, rows, d = game.features.shape
    like = game.features
    added = like.new_zeros(count, players)
    live = torch.arange(count, device=orders.device)
    value = like.new_zeros(count)
    head = like.new_zeros(count, d, game.classes)
    inverse = (torch.eye(d, dtype=like.dtype, device=like.device) / game.ridge).repeat(count, 1, 1)
    for player in orders.split(max(1, _ROWS // rows), dim=1):
        player = player[live]
        x = game.features[player].flatten(1, 2)
        y = game.one_hot(game.labels[player]).flatten(1, 2)
        solved = x @ inverse
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        lower = torch.linalg.cholesky(eye + solved @ x.mT)
        q = torch.linalg.solve_triangular(lower, solved, upper=False)
        z = torch.linalg.solve_triangular(lower, y - x @ head, upper=False)
        seen = q @ game.gram
        change = 2 * (q @ game.cross - seen @ head)
        both = (seen @ q.mT).tril()
        both = both + both.tril(-1)
        gains = (z * (change - both @ z)).sum(2).unflatten(1, (-1, rows)).sum(2)
        after = value[:, None] + gains.cumsum(1)
        before = torch.cat([value[:, None], after[:, :-1]], 1)
        on = ((whole - before).abs() >= tolerance * whole.abs()).int().cummin(1).values.bool()
        added[live[:, None], player] = gains * on
        on = on[:, -1]
        live, value = live[on], after[on, -1]
        if not len(live):
            break
        head = head[on] + q[on].mT @ z[on]
        inverse = inverse[on] - q[on].mT @ q[on]
    return added


class DataShapley(Selector):
    """Keep the samples that a head learnt on the forget set owes most to.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        target: set whose prediction is the performance: retain or holdout.
        permutations: orders that samples enter in, at most; whether the values have settled is
            looked at after each 100.
        tolerance: an order ends where the performance is within this part of that of all samples,
            in [0, 1); 0 ends none.
        convergence: mean relative change of the values over 100 orders that is small enough to
            end, the paper's 0.05; 0 draws all `permutations`.
        ridge: of the head, in samples of mean squared length.
        samples: of the target set, drawn uniformly; all of them where there are fewer.
        seed: of the orders and of that draw.
    """

    requires: ClassVar[tuple[str, ...]] = ("targets", "features")
    paper: ClassVar[dict[str, Any]] = {
        "title": "Data Shapley: Equitable Valuation of Data for Machine Learning",
        "year": 2019,
        "arxiv": "1904.02868",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        target: Literal["retain", "holdout"] = "retain",
        permutations: int = 1000,
        tolerance: float = 0.01,
        convergence: float = 0.05,
        ridge: float = 1.0,
        samples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        check_game(target, samples, ridge)
        if permutations < 1:
            msg = f"`permutations` must be at least 1, got {permutations}"
            raise ValueError(msg)
        if not 0 <= tolerance < 1:
            msg = f"`tolerance` must be in [0, 1), got {tolerance}"
            raise ValueError(msg)
        if convergence < 0:
            msg = f"`convergence` must not be negative, got {convergence}"
            raise ValueError(msg)
        self.target = target
        self.permutations = permutations
        self.tolerance = tolerance
        self.convergence = convergence
        self.ridge = ridge
        self.samples = samples

    @torch.no_grad()
    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Shapley value of each sample, ``(n,)``.

        Warns:
            UserWarning: when `permutations` did not reach `convergence`.
        """
        game = play(self, strategy, dataset, self.target, self.samples, self.ridge)
        generator = torch.Generator().manual_seed(self.seed)
        total = game.features.new_zeros(len(game.features))
        before, change = total, float("inf")
        steps = range(0, self.permutations, _WINDOW)
        for start in watch(steps, strategy, "Data Shapley"):
            stop = min(start + _WINDOW, self.permutations)
            orders = torch.stack(
                [torch.randperm(len(total), generator=generator) for _ in range(start, stop)]
            )
            total = total + marginals(game, orders.to(total.device), self.tolerance).sum(0)
            now = total / stop
            if start:
                moved = (now - before).abs() / now.abs()
                change = float(moved.nan_to_num(nan=0.0, posinf=1.0).mean())
            if change < self.convergence:
                break
            before = now
        if float("inf") > change >= self.convergence > 0:
            warnings.warn(
                f"DataShapley: the values still move by {change:.1%} of their size after "
                f"{self.permutations} orders; raise `permutations` or `convergence`",
                stacklevel=2,
            )
        return total / stop
