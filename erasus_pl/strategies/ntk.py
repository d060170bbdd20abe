"""NTK forgetting: the step in closed form from training on D to training on D_r, linearised.

Golatkar, Achille and Soatto, "Forgetting Outside the Box: Scrubbing Deep Networks of Information
Accessible from Input-Output Observations" (ECCV 2020, arXiv:2003.02960). Linearised in its weights,
a network trained on a set S ends at w_S = −G_S (G_Sᵀ G_S + |S| λ I)⁻¹ (f_0(S) − y_S), where the
columns of G_S are the gradients of all outputs on S, f_0 are the outputs at w = 0, and λ is the
weight decay. Forgetting moves the weights by the difference, θ = θ_o + s (w_Dr − w_D).

As in the published code the linearisation is at θ_o, and f − y is softmax(f) − onehot(y) for
classes, f − y for a target of the outputs' shape. Weight decay pulls to w = 0, hence
f_0 = f(θ_o) − G_Sᵀ θ_o: with that, and only with it, a linear model trained by least squares ends
exactly where retraining does. The published trust scaling of s is left out: it asks for the weights
before training, and triples a step that is exact. The noise that the paper adds afterwards is left
to FisherForgetting.

The system has a side of N K outputs or, by Woodbury's identity, of P weights; the cheaper is solved
in double precision. A trained network has residuals near 0, so the step is short: on digits it
leaves a forgotten class in place, and steps long enough to lose it lose the others; of wrong labels
it takes back a little.
"""

from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.linalg import PerSampleGradients, unflatten
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["NTKForgetting", "kernel_weights", "primal_weights"]

_GIB = 2**30


def kernel_weights(jacobian: Tensor, residual: Tensor, decay: float) -> Tensor:
    """Weights −G (Gᵀ G + decay I)⁻¹ r, `(P,)` (arXiv:2003.02960, NTK with weight decay).

    Args:
        jacobian: Gᵀ, `(M, P)`, a row for each output of each sample.
        residual: r = f_0 − y, `(M,)`.
        decay: |S| λ, above 0.
    """
    return -jacobian.T @ _solve(jacobian @ jacobian.T, residual, decay)


def primal_weights(gram: Tensor, moment: Tensor, decay: float) -> Tensor:
    """The same weights as −(G Gᵀ + decay I)⁻¹ G r, by Woodbury's identity.

    Args:
        gram: G Gᵀ, `(P, P)`.
        moment: G r, `(P,)`.
        decay: |S| λ, above 0.
    """
    return -_solve(gram, moment, decay)


class NTKForgetting(Strategy):
    """Take, once, the step between two closed-form trainings of the linearised network.

    For small networks; needs `trainer.max_epochs: 1`. With a coreset D_f is estimated on it.

    Args:
        task: the trained model.
        optimizer: not used; the weights are edited in closed form.
        weight_decay: λ, above 0; that of the original's training, 5e-4 in the paper's.
        scale: s, above 0; 1 is what the theory gives.
        memory: GiB that the linear system may take, above 0.
    """

    loader_mode = "single_pass"
    requires = ("vector_outputs",)
    paper: ClassVar[dict] = {
        "title": "Forgetting Outside the Box: Scrubbing Deep Networks of Information Accessible "
        "from Input-Output Observations",
        "year": 2020,
        "arxiv": "2003.02960",
    }
    limits: ClassVar[dict] = {
        "class": "a trained network's residuals are near 0, which makes the step too short",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        weight_decay: float = 5e-4,
        scale: float = 1.0,
        memory: float = 4.0,
    ) -> None:
        super().__init__(task, optimizer)
        for name, value in (("weight_decay", weight_decay), ("scale", scale), ("memory", memory)):
            if not value > 0:
                msg = f"`{name}` must be above 0, got {value}"
                raise ValueError(msg)
        self.weight_decay = weight_decay
        self.scale = scale
        self.memory = memory
        self.side = ""
        self._gradients: PerSampleGradients | None = None

    def on_fit_start(self) -> None:
        """Choose the side of the system, and refuse one that does not fit."""
        super().on_fit_start()
        modes = {module: module.training for module in self.task.modules()}
        self.task.eval()
        with torch.no_grad():
            outputs = self.task(next(iter(self.data.forget_batches())))
        for module, mode in modes.items():
            module.training = mode
        if outputs.dim() != 2:
            msg = f"NTKForgetting needs outputs (B, K), got {tuple(outputs.shape)}"
            raise TypeError(msg)
        weights = sum(p.numel() for p in self.trainable.values())
        rows = outputs.shape[1] * len(self.data.train_set)
        # The two sets' matrices, their sum and its factor; or the Jacobian, a copy and a factor.
        need = {"primal": 4 * weights**2, "kernel": 2 * rows * (weights + rows)}
        self.side = min(need, key=lambda side: need[side])
        gib = 8 * need[self.side] / _GIB
        if gib > self.memory:
            fits = int((self.memory * _GIB / 32) ** 0.5)
            msg = (
                f"NTKForgetting needs {gib:,.1f} GiB for {weights:,} weights and {rows:,} outputs "
                f"of the training data, and `memory` is {self.memory:g}: freeze layers until at "
                f"most {fits:,} weights are trainable, or raise `memory`"
            )
            raise ValueError(msg)

    def accumulate(self, forget: Batch | None, retain: Batch | None) -> None:
        """Take in the gradients of every output of both batches."""
        if self._gradients is None:
            self._gradients = PerSampleGradients(self.task, self._output)
        for name, batch in (("forget", forget), ("retain", retain)):
            if batch is None:
                continue
            ones = torch.ones(len(batch["index"]), device=batch["index"].device)
            weight = batch.get("weight", ones).double()
            self.add(name, weight.sum())
            residual = self._residual(batch)
            columns = [self._jacobian(batch, k) for k in range(residual.shape[1])]
            jacobian = torch.stack(columns, 1)
            rest = residual - jacobian @ self._theta()
            root = weight.sqrt()[:, None]
            self._take(name, batch, jacobian * root[:, None], rest * root)

    def edit(self) -> None:
        """Take the step."""
        data = self.data
        n_forget, n_retain = len(data.forget_set), len(data.retain_set)
        share = n_forget / self.totals["forget"]
        decay = self.weight_decay * n_retain, self.weight_decay * (n_forget + n_retain)
        if self.side == "primal":
            gram, moment = self.totals["retain/gram"], self.totals["retain/moment"]
            without = primal_weights(gram, moment, decay[0])
            gram = gram + share * self.totals["forget/gram"]
            moment = moment + share * self.totals["forget/moment"]
            before = primal_weights(gram, moment, decay[1])
        else:
            jacobian, residual = self.totals["jacobian"], self.totals["residual"]
            jacobian[n_retain:] *= share.sqrt()
            residual[n_retain:] *= share.sqrt()
            rows, rest = jacobian.flatten(0, 1), residual.flatten()
            retained = n_retain * jacobian.shape[1]
            without = kernel_weights(rows[:retained], rest[:retained], decay[0])
            before = kernel_weights(rows, rest, decay[1])
        for name, change in unflatten(without - before, self.trainable).items():
            self.trainable[name].add_(self.scale * change.to(self.trainable[name].dtype))

    def _take(self, name: str, batch: Batch, jacobian: Tensor, rest: Tensor) -> None:
        """Add gradients `(B, K, P)` and f_0 − y `(B, K)` to the totals, in place."""
        outputs, weights = jacobian.shape[1:]
        if self.side == "primal":
            if f"{name}/gram" not in self.totals:
                self.totals[f"{name}/gram"] = jacobian.new_zeros(weights, weights)
                self.totals[f"{name}/moment"] = jacobian.new_zeros(weights)
            flat = jacobian.flatten(0, 1)
            self.totals[f"{name}/gram"].addmm_(flat.T, flat)
            self.totals[f"{name}/moment"].addmv_(flat.T, rest.flatten())
            return
        if "jacobian" not in self.totals:
            n = len(self.data.train_set)
            self.totals["jacobian"] = jacobian.new_zeros(n, outputs, weights)
            self.totals["residual"] = jacobian.new_zeros(n, outputs)
        rows = self._rows().to(jacobian.device)[batch["index"]]
        self.totals["jacobian"][rows] = jacobian
        self.totals["residual"][rows] = rest

    def _rows(self) -> Tensor:
        """Place of each training sample: retain set first, then forget set."""
        data = self.data
        places = torch.cat([data.retain_set.positions, data.forget_set.positions])
        return torch.empty_like(places).scatter_(0, places, torch.arange(len(places)))

    @torch.no_grad()
    def _residual(self, batch: Batch) -> Tensor:
        """What the outputs are off by, `(B, K)`."""
        outputs, target = self.task(batch).double(), batch["target"]
        if not target.is_floating_point():
            hot = torch.nn.functional.one_hot(target, outputs.shape[1])
            return outputs.softmax(-1) - hot
        return outputs - target.reshape(outputs.shape)

    def _jacobian(self, batch: Batch, column: int) -> Tensor:
        assert self._gradients is not None
        given = batch | {"column": torch.full_like(batch["index"], column)}
        found = self._gradients.gradients(given)
        return torch.cat([g.flatten(1) for g in found.values()], 1).double()

    def _output(self, batch: Batch) -> Tensor:
        return self.task(batch).gather(1, batch["column"].unsqueeze(1)).squeeze(1)

    def _theta(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.trainable.values()]).double()


def _solve(matrix: Tensor, target: Tensor, decay: float) -> Tensor:
    shifted = matrix.clone()
    shifted.diagonal().add_(decay)
    return torch.cholesky_solve(target.unsqueeze(1), torch.linalg.cholesky(shifted)).squeeze(1)
