"""JiT: flatten the model around the forget samples, with nothing but these samples at hand.

Foster et al., "An Information Theoretic Approach to Machine Unlearning" (2024, arXiv:2402.01401):
what a sample adds to a model shows in how steep the model is around it, so its local Lipschitz
constant is estimated by noise and minimised,
ℓ(x) = (1/N) Σ_{j=1..N} ‖f_θ(x) − f_θ(x + ξ_j)‖₂ / ‖ξ_j‖₂ with ξ_j ~ N(0, σ² I),
f being the outputs before the softmax. The gradient flows through f_θ(x) alone, as in the published
code. It is zero-shot: no retain set and no targets, one pass over D_f.

The published code sums ℓ over a batch where here the mean is taken, so its learning rates are to be
multiplied by its batch size of 128; and it clamps x + ξ to the range of the batch, which no formula
asks for. Tokens cannot bear noise: there it is added to what the first embedding gives,
which is this implementation's reading, not the paper's. The network stays in eval mode, as
otherwise dropout would be measured with it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task
from erasus_pl.tasks.inputs import continuous_input, forward_from

__all__ = ["JiT", "lipschitz_ratio"]


def lipschitz_ratio(outputs: Tensor, noisy: Tensor, noise: Tensor) -> Tensor:
    """‖f(x) − f(x + ξ)‖₂ / ‖ξ‖₂ of each sample, `(B,)` (arXiv:2402.01401, the loss).

    Args:
        outputs: f(x), `(B, …)`.
        noisy: f(x + ξ), of the same shape.
        noise: ξ, `(B, …)`; no row of zeros.
    """
    apart = torch.linalg.vector_norm((outputs - noisy).flatten(1), dim=1)
    return apart / torch.linalg.vector_norm(noise.flatten(1), dim=1)


class JiT(Strategy):
    """Make outputs insensitive to noise on forget samples; sees no retain sample.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.0384 (the paper's 3e-4 for a VGG, times its batches of 128) and
            neither momentum nor weight decay by default, for 1 epoch. Search it for each model.
        sigma: standard deviation σ of the noise, in units of the input; above 0.
        n_samples: N, noisy copies of each sample; at least 1.
    """

    loader_mode = "forget"
    paper: ClassVar[dict] = {
        "title": "An Information Theoretic Approach to Machine Unlearning",
        "year": 2024,
        "arxiv": "2402.01401",
    }
    limits: ClassVar[dict] = {
        "random": "a model flattened around random samples changes as much around the others",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        sigma: float = 0.5,
        n_samples: int = 25,
    ) -> None:
        super().__init__(task, optimizer)
        if sigma <= 0:
            msg = f"`sigma` must be above 0, got {sigma}"
            raise ValueError(msg)
        if n_samples < 1:
            msg = f"`n_samples` must be at least 1, got {n_samples}"
            raise ValueError(msg)
        self.sigma = sigma
        self.n_samples = n_samples

    def on_train_start(self) -> None:
        """Measure the network as it is used."""
        self.task.eval()

    def unlearning_losses(self, forget: Batch, retain: Any) -> dict[str, Tensor]:
        """The mean Lipschitz estimate of the forget batch."""
        clean = continuous_input(self.task, forget)
        outputs = self.task(forget)
        total = torch.zeros(len(clean), device=clean.device)
        generators = [self._generator(i) for i in forget["index"].tolist()]
        for _ in range(self.n_samples):
            drawn = [torch.randn(clean.shape[1:], generator=g) for g in generators]
            noise = self.sigma * torch.stack(drawn).to(clean)
            with torch.no_grad():
                noisy = forward_from(self.task, forget, clean + noise)
            total = total + self._ratio(outputs, noisy, noise, forget)
        return {"lipschitz": self.task.reduce(total / self.n_samples, forget)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.0384."""
        return torch.optim.SGD(parameters, lr=0.0384)

    def _ratio(self, outputs: Tensor, noisy: Tensor, noise: Tensor, batch: Batch) -> Tensor:
        mask = batch.get("attention_mask")
        if mask is not None and outputs.dim() > 2:
            outputs, noisy = outputs * mask.unsqueeze(-1), noisy * mask.unsqueeze(-1)
            noise = noise * mask.unsqueeze(-1)
        return lipschitz_ratio(outputs, noisy, noise)

    def _generator(self, index: int) -> torch.Generator:
        """The noise of a sample depends on run, step and sample, not on what it is batched with."""
        return torch.Generator().manual_seed(
            hash((self.data.seed, self.global_step, index)) % 2**63
        )
