"""DELETE: distil from the original, with each forget sample's own class filtered out of it.

Zhou et al., "Decoupled Distillation to Erase: A General Unlearning Method for Any Class-centric
Tasks" (CVPR 2025, arXiv:2503.23751). The frozen original is the teacher. Of a forget sample with
class y its logit z_y is masked, so that what it teaches is p̃_c = exp z_c / Σ_{j≠y} exp z_j for
c ≠ y and p̃_y = 0 (`filtered_logits`); over D_f alone the mean of KL(p̃ ‖ student) is minimised. The
zero makes the class go, the renormalised rest ("dark knowledge") holds what the original thinks of
the other classes, in place of a retain set. Filtering a teacher's logits so, without distilling
them, is the naive filtration of Baumhauer et al. (2022, arXiv:2002.02730).

Under random forgetting it takes the accuracy on D_f, and that on samples like them, far below a
retrained model's: stop early, or take another method. Of text each labelled token is masked: this
implementation's reading.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch

__all__ = ["DELETE", "filtered_logits"]


def filtered_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits whose softmax is 0 at a class and renormalised elsewhere (arXiv:2503.23751, mask).

    The masked logit is finite, since 0 · log 0 of a divergence must be 0.

    Args:
        logits: `(…, C)` with C ≥ 2.
        classes: `(…,)`, what is masked.
    """
    lowest = torch.finfo(logits.dtype).min / 2
    return logits.scatter(-1, classes.unsqueeze(-1), lowest)


class DELETE(Strategy):
    """Distil forget samples from the original with their own class filtered out.

    Sees no retain sample.

    Args:
        task: the trained model.
        optimizer: SGD with lr 1e-3 and momentum 0.9 by default, for 20 epochs.
    """

    loader_mode = "forget"
    needs_original = True
    requires = ("divergence", "targets")
    paper: ClassVar[dict] = {
        "title": "Decoupled Distillation to Erase: A General Unlearning Method for Any "
        "Class-centric Tasks",
        "year": 2025,
        "arxiv": "2503.23751",
    }

    def unlearning_losses(self, forget: Batch, retain: Any) -> dict[str, Tensor]:
        """Divergence from the filtered original."""
        with torch.no_grad():
            reference = filtered_logits(self.original(forget), _classes(forget))
        kl = self.task.divergence(self.task(forget), reference, forget)
        return {"forget_filtered": self.task.reduce(kl, forget)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 1e-3."""
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def _classes(batch: Batch) -> Tensor:
    """The class each output is scored against: of a sample, or of a position and its next token."""
    if "labels" not in batch:
        return batch["target"]
    return batch["labels"].roll(-1, 1).clamp(min=0)
