"""Let any strategy change a part of the weights alone.

Restricting unlearning to the weights that hold what must go is a part of several methods: SalUn
(arXiv:2310.12508) takes those with the largest gradient of the forget set, selective synaptic
dampening (arXiv:2308.07707) those that matter more to it than to the rest. Here it is one
mechanism beside the strategy. A mask m is made of the original, and what the strategy does to θ,
by whatever means, becomes m ⊙ θ + (1 − m) ⊙ θ_o, to the bit: no weight decay, no momentum, no
closed-form edit and no drawing anew reaches the rest.

The optimiser is given vectors of the entries that may move instead of whole parameters, so that its
state, in memory and in checkpoints, exists for nothing else; gradient clipping sees these entries
alone, too. Optimisers that treat each weight by itself do as they would without a mask.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from erasus_pl.mechanisms._compact import Compact, replace
from erasus_pl.mechanisms._names import named_parameters
from erasus_pl.mechanisms._ranking import RANKINGS, highest
from erasus_pl.mechanisms._still import Still
from erasus_pl.strategies.base import Strategy

__all__ = ["SparseUpdate"]

_MB = 2**20


class SparseUpdate(Callback):
    """Restricts any strategy to a part of the trainable weights; all others keep every bit.

    Masks are made of the original, in eval mode, after a selector has picked: put it behind the
    selector where `trainer.callbacks` is filled in Python. They are kept in checkpoints, one bit a
    weight. Layers that cannot move, because they were not chosen or because you froze them, also
    keep their buffers: their batch norms stay in eval mode. SISA is refused: it deletes exactly,
    and a mask would keep what has to go.

    Args:
        mask: what ranks weights: `saliency`, |∇ℓ| over the forget set; `fisher`, Fisher information
            on the forget set by that on the retain set; `magnitude`, |θ|; `random`; or none, to let
            all weights of `layers` move.
        fraction: part of the weights that may move, those that rank highest, in (0, 1]; counted
            over all that you did not freeze, also where a strategy holds some of them still. Not
            used without a mask.
        layers: names of the network's modules or parameters, with wildcards, such as `head` or
            `blocks.*.bias`; weights outside them do not move. All of the network if not given.
        seed: of the random mask.
    """

    def __init__(
        self,
        mask: Literal["saliency", "fisher", "magnitude", "random"] | None = "saliency",
        fraction: float = 0.5,
        layers: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        if mask not in (None, *RANKINGS):
            msg = f"`mask` must be one of {', '.join(RANKINGS)} or null, got {mask!r}"
            raise ValueError(msg)
        if not 0 < fraction <= 1:
            msg = f"`fraction` must be in (0, 1], got {fraction}"
            raise ValueError(msg)
        if mask is None and not layers:
            msg = "`layers` is missing: without a `mask`, name the layers that may move"
            raise ValueError(msg)
        self.mask = mask
        self.fraction = fraction
        self.layers = layers
        self.seed = seed
        self.memory: dict[str, float] = {}
        self._bits: Tensor | None = None
        self._shapes: dict[str, torch.Size] = {}
        self._resumed = False
        self._names: list[str] = []
        self._original: dict[str, Tensor] = {}
        self._frozen: list[nn.Parameter] = []
        self._still: Still | None = None
        self._compact: list[Compact] = []
        self._smaller: dict[torch.optim.Optimizer, int] = {}
        self._undo: list[Callable[[], Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze the layers that were not chosen, and keep the original before it is touched."""
        if stage != "fit":
            return
        name = type(self).__name__
        if not isinstance(pl_module, Strategy):
            msg = (
                f"{name} restricts a Strategy, and the model is a {type(pl_module).__name__}; "
                "remove it from trainer.callbacks"
            )
            raise TypeError(msg)
        if "shards" in pl_module.requires:
            msg = (
                f"{type(pl_module).__name__} deletes exactly, and {name} would leave in its "
                "members what has to go; remove it from trainer.callbacks"
            )
            raise TypeError(msg)
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            msg = (
                f"`trainer.strategy`: {name} needs whole parameters on each device, got "
                f"{type(trainer.strategy).__name__}; use one device or ddp"
            )
            raise TypeError(msg)
        network = pl_module.task.network
        if self.layers:
            chosen = named_parameters(network, self.layers, "layers")
            rest = (p for p in network.parameters() if p not in chosen)
            self._frozen = [p for p in rest if p.requires_grad]
            for parameter in self._frozen:
                parameter.requires_grad_(False)
        self._names = [k for k, p in network.named_parameters() if p.requires_grad]
        self._original = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}

    @property
    def masks(self) -> dict[str, Tensor]:
        """What may move of each trainable weight of the network, bool, by name."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        flat = torch.ones(sum(sizes), dtype=torch.bool)
        if self._bits is not None:
            flat = torch.from_numpy(np.unpackbits(self._bits.numpy(), count=len(flat))).bool()
        parts = torch.split(flat, sizes)
        return {k: m.view(s) for (k, s), m in zip(self._shapes.items(), parts, strict=True)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the masks, put back what must not move, and make the optimisers smaller."""
        strategy = cast(Strategy, pl_module)
        network = strategy.task.network
        weights = {k: p for k, p in network.named_parameters() if k in self._names}
        shapes = {k: p.shape for k, p in weights.items()}
        original: dict[str, Any] = self._original
        if not self._resumed and trainer.ckpt_path is None:
            self._shapes = shapes
            bits = None
            if self.mask is not None:
                mask = highest(
                    strategy, self.mask, self.fraction, self.seed, weights, self._original
                )
                bits = torch.from_numpy(np.packbits(mask.cpu().numpy()))
            self._bits = trainer.strategy.broadcast(bits)
        elif not self._resumed or self._shapes != shapes:
            other = "restricts other layers" if self._resumed else f"has no {type(self).__name__}"
            msg = (
                f"`ckpt_path`: the checkpoint {other}; resume with what it was made with, or start "
                "anew without --ckpt_path"
            )
            raise ValueError(msg)
        else:
            original = weights
        self._compact = [
            Compact(weights[k], mask.to(weights[k].device), original[k].detach())
            for k, mask in self.masks.items()
            if not mask.all()
        ]
        self._original, self._resumed = {}, False
        self._make_smaller(trainer, strategy)
        if self._compact and strategy.automatic_optimization:
            self._clip_what_moves(strategy)
        self._still = Still(network)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Undo what was drawn anew, see to new optimisers, and keep still what cannot move."""
        for c in self._compact:
            c.put_back()
        self._make_smaller(trainer, cast(Strategy, pl_module))
        if self._still is not None:
            self._still.hold()

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        """Clear the gradients that the optimiser no longer sees."""
        for c in self._compact:
            c.parameter.grad = None

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand gradients to the optimiser, before a loss scaler takes its scale out of them."""
        for c in self._compact:
            c.pull()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Show the strategy the gradient of what moves."""
        for c in self._compact:
            c.push_gradient()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put back what a strategy wrote itself, and tell once what the optimiser holds."""
        for c in self._compact:
            c.put_back()
        if not self.memory and trainer.global_step and pl_module.automatic_optimization:
            self._tell(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back whatever was written, before an epoch's checkpoint."""
        for c in self._compact:
            c.put_back(always=True)

    on_fit_end = on_train_epoch_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go; what the user froze stays frozen."""
        for undo in self._undo:
            undo()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        if self._still is not None:
            self._still.release()
        self._undo, self._frozen, self._still, self._compact = [], [], None, []
        self._smaller = {}

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """The masks, one bit a weight, and what they were made by."""
        shapes = {k: list(s) for k, s in self._shapes.items()}
        return {"settings": self._settings(), "shapes": shapes, "bits": self._bits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the masks of the run that is resumed."""
        before, now = state_dict["settings"], self._settings()
        different = [k for k in now if before[k] != now[k]]
        if different:
            changes = ", ".join(f"`{k}` was {before[k]!r} and is {now[k]!r}" for k in different)
            msg = (
                f"the checkpoint restricts other weights: {changes}; resume with what it was made "
                "with, or start anew without --ckpt_path"
            )
            raise ValueError(msg)
        self._shapes = {k: torch.Size(s) for k, s in state_dict["shapes"].items()}
        self._bits = state_dict["bits"]
        self._resumed = True

    def _settings(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("mask", "fraction", "layers", "seed")}

    def _make_smaller(self, trainer: Trainer, strategy: Strategy) -> None:
        """Give optimisers, which a strategy may make anew as it goes on, the leaves."""
        if not self._compact or not strategy.automatic_optimization:
            return
        for optimizer in trainer.optimizers:
            if optimizer not in self._smaller:
                undo, whole = replace(optimizer, self._compact)
                self._smaller[optimizer] = whole
                self._undo += undo

    def _clip_what_moves(self, strategy: Strategy) -> None:
        """Hand over gradients once more after the strategy's own hook, and before clipping.

        No hook of a callback lies between the two.
        """
        name, names = "configure_gradient_clipping", strategy.__dict__

        def pull_and_clip(*arguments: Any, **keywords: Any) -> None:
            for c in self._compact:
                c.pull_gradient()
            del names[name]
            try:
                strategy.configure_gradient_clipping(*arguments, **keywords)
            finally:
                names[name] = pull_and_clip

        names[name] = pull_and_clip
        self._undo.append(lambda: names.pop(name))

    def _tell(self, trainer: Trainer) -> None:
        states = [s for o in trainer.optimizers for s in o.state.values()]
        tensors = [v for s in states for v in s.values() if torch.is_tensor(v) and v.dim()]
        groups = [g for o in trainer.optimizers for g in o.param_groups]
        moving = sum(p.numel() for g in groups for p in g["params"])
        frozen = sum(p.numel() for p in self._frozen)
        total = frozen + (sum(self._smaller[o] for o in trainer.optimizers if o in self._smaller)
                          or moving)  # fmt: skip
        held = sum(v.nbytes for v in tensors) / _MB
        whole = held * total / moving
        self.memory = {
            "sparse/moving": float(moving),
            "sparse/optimizer_mb": held,
            "sparse/optimizer_mb_without": whole,
        }
        for logger in trainer.loggers:
            logger.log_metrics(self.memory, step=trainer.global_step - 1)
        rank_zero_info(
            f"{moving:,} of {total:,} weights may move: the optimiser holds {held:.3g} "
            f"MB instead of {whole:.3g} MB"
        )
