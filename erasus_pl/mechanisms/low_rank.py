"""Let a strategy change weights by matrices of low rank alone.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022, arXiv:2106.09685), Sec.
4.1: a weight W (d × k) stays as it is and W + (α / r) B A takes its place, with B (d × r), zero at
first, and A (r × k) drawn at random; only A and B learn. So the optimiser holds r (d + k) numbers
of d k, and what unlearning did to a layer has rank at most r. The adapters are those of `peft`.

The network is a plain one wherever it is read. Checkpoints hold merged weights, with A and B beside
them for a resumed run; so reports, `evaluate` and `erasus_pl.load` need no adapter.
"""

import os
import re
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from erasus_pl._extras import require
from erasus_pl.mechanisms._names import named_parameters
from erasus_pl.mechanisms._still import Still
from erasus_pl.mechanisms.sparse_update import SparseUpdate
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Task

__all__ = ["LowRank"]

_ADAPTER = "default"


class LowRank(Callback):
    """Trains low-rank adapters beside frozen weights, and merges them at the end.

    For strategies that learn by gradients. Refused are those that edit weights in closed form, and
    those whose method is about the weights themselves: drawing them anew, counting layers,
    subtracting or penalising them. All weights but the adapters' are frozen, biases included, and
    keep every bit until the end; batch norms stay in eval mode.

    Args:
        rank: r, at least 1.
        alpha: α, above 0; scales what is learnt by α / r.
        targets: names of the network's modules, with wildcards, such as `blocks.*.qkv`, whose
            linear layers and convolutions are adapted; if not given, those of the whole network,
            except for grouped convolutions. Weights that are frozen, or shared between layers, are
            never adapted.
        merge: at the end, put W + (α / r) B A in the place of W; if not, the network in memory
            keeps its adapters. What is saved is merged in any case.
        seed: of A; if not given it follows `seed_everything`.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 32.0,
        targets: list[str] | None = None,
        merge: bool = True,
        seed: int | None = None,
    ) -> None:
        if rank < 1:
            msg = f"`rank` must be at least 1, got {rank}"
            raise ValueError(msg)
        if alpha <= 0:
            msg = f"`alpha` must be above 0, got {alpha}"
            raise ValueError(msg)
        require("peft", "llm")
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.merge = merge
        self.seed = seed
        self.layers: dict[str, Any] = {}
        self._adapters: dict[str, Tensor] = {}
        self._saved: dict[str, Tensor] = {}
        self._resumed = False
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._hook: Any = None
        self._still: Still | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the adapters in, before processes agree on what there is to learn."""
        if stage != "fit":
            return
        strategy = self._fitting(trainer, pl_module)
        network = strategy.task.network
        names = self._chosen(network)
        self._flags = [(p, p.requires_grad) for p in network.parameters()]
        peft = require("peft", "llm")
        configuration = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            bias="none",
            target_modules="|".join(map(re.escape, names)),
        )
        run = int(os.environ.get("PL_GLOBAL_SEED", 0)) + 10_007
        with torch.random.fork_rng():
            torch.manual_seed(self.seed if self.seed is not None else run)
            peft.inject_adapter_in_model(configuration, network, _ADAPTER)
        del network.peft_config
        modules = dict(network.named_modules())
        self.layers = {name: modules[name] for name in names}
        self._saved, self._resumed = {}, False
        load = lambda *given: self._from_plain(*given)  # noqa: E731, copies share a function
        self._hook = network.register_load_state_dict_pre_hook(load)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what is resumed, and let teachers be what they were without adapters."""
        network = cast(Strategy, pl_module).task.network
        if trainer.ckpt_path is not None and not self._resumed:
            msg = (
                f"`ckpt_path`: the checkpoint has no {type(self).__name__}; resume with what it "
                "was made with, or start anew without --ckpt_path"
            )
            raise ValueError(msg)
        if self._resumed:
            self._resume(network)
        for teacher in vars(pl_module).values():
            if isinstance(teacher, Task):
                for name, module in teacher.network.named_modules():
                    if name in self.layers:
                        nn.init.zeros_(cast(Any, module).lora_B[_ADAPTER].weight)
        self._still = Still(network)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Layers that cannot move keep their statistics."""
        if self._still is not None:
            self._still.hold()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save a plain network; A and B are in this callback's state."""
        if self.layers:
            checkpoint["state_dict"] = self._plain(checkpoint["state_dict"], "task.network.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge."""
        if not self.merge:
            return
        network = cast(Strategy, pl_module).task.network
        with torch.no_grad():
            for layer in self.layers.values():
                layer.get_base_layer().weight.copy_(self._merged(layer))
        self._take_out(network)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go; what the user froze stays frozen."""
        if self._still is not None:
            self._still.release()
        if self._hook is not None:
            self._hook.remove()
        if self._flags and not self.layers:
            for parameter, flag in self._flags:
                parameter.requires_grad_(flag)
        self._flags, self._hook, self._still = [], None, None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the weights as they were, without adapters."""
        if isinstance(pl_module, Strategy):
            self._take_out(pl_module.task.network)
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """A and B of every adapted layer."""
        if self.layers:
            self._adapters = self._own()
        settings = {k: getattr(self, k) for k in ("rank", "alpha", "targets")}
        return {"settings": settings, "adapters": self._adapters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up A and B of the run that is resumed."""
        before, now = state_dict["settings"], self.state_dict()["settings"]
        different = [k for k in now if before[k] != now[k]]
        if different:
            changes = ", ".join(f"`{k}` was {before[k]!r} and is {now[k]!r}" for k in different)
            msg = (
                f"the checkpoint has other adapters: {changes}; resume with what it was made with, "
                "or start anew without --ckpt_path"
            )
            raise ValueError(msg)
        self._adapters = state_dict["adapters"]
        self._resumed = True

    def _fitting(self, trainer: Trainer, module: LightningModule) -> Strategy:
        name = type(self).__name__
        if not isinstance(module, Strategy):
            msg = (
                f"{name} adapts the network of a Strategy, and the model is a "
                f"{type(module).__name__}; remove it from trainer.callbacks"
            )
            raise TypeError(msg)
        why = "edits weights in closed form" if module.one_shot else module.on_weights
        if hasattr(module, "stage"):
            why = "runs others that may not"
        if why:
            msg = (
                f"{name} leaves the weights as they are, and {type(module).__name__} {why}; remove "
                "it from trainer.callbacks"
            )
            raise TypeError(msg)
        if any(isinstance(callback, SparseUpdate) for callback in cast(Any, trainer).callbacks):
            msg = f"`trainer.callbacks`: give one of SparseUpdate and {name}, got both"
            raise ValueError(msg)
        return module

    def _chosen(self, network: nn.Module) -> list[str]:
        owners: dict[nn.Parameter, int] = {}
        for _, parameter in network.named_parameters(remove_duplicate=False):
            owners[parameter] = owners.get(parameter, 0) + 1
        asked = named_parameters(network, self.targets, "targets") if self.targets else None
        names = [
            name
            for name, module in network.named_modules()
            if name
            and type(module) in (nn.Linear, nn.Conv2d)
            and (module.weight in asked if asked is not None else _groups(module) == 1)
            and module.weight.requires_grad
            and owners[module.weight] == 1
        ]
        if not names:
            where = f"in {', '.join(self.targets)}" if self.targets else "in this network"
            msg = (
                f"`targets`: there is no linear layer or convolution to adapt {where}, inside "
                "another module and with a weight of its own that is not frozen"
            )
            raise ValueError(msg)
        return names

    def _own(self) -> dict[str, Tensor]:
        return {
            f"{name}.{side}": getattr(layer, f"lora_{side}")[_ADAPTER].weight.detach().cpu().clone()
            for name, layer in self.layers.items()
            for side in "AB"
        }

    def _merged(self, layer: Any) -> Tensor:
        return layer.get_base_layer().weight.detach() + layer.get_delta_weight(_ADAPTER).detach()

    def _plain(self, state: dict[str, Any], prefix: str) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        layers = {f"{prefix}{name}": layer for name, layer in self.layers.items()}
        for key, value in state.items():
            owner, _, own = key.rpartition(".base_layer.")
            if owner not in layers:
                if not any(key.startswith(f"{name}.lora_") for name in layers):
                    plain[key] = value
            else:
                plain[f"{owner}.{own}"] = self._merged(layers[owner]) if own == "weight" else value
        return plain

    def _from_plain(self, network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Load a plain network around the adapters; the frozen weights stay the original's."""
        own = network.state_dict(keep_vars=True)
        for name in self.layers:
            if f"{prefix}{name}.weight" not in state:
                continue
            self._saved[name] = state.pop(f"{prefix}{name}.weight")
            if f"{prefix}{name}.bias" in state:
                state[f"{prefix}{name}.base_layer.bias"] = state.pop(f"{prefix}{name}.bias")
            for key in (k for k in own if k.startswith(f"{name}.")):
                state.setdefault(f"{prefix}{key}", own[key])

    def _resume(self, network: nn.Module) -> None:
        found = self._own()
        fits = found.keys() == self._adapters.keys() and all(
            found[k].shape == v.shape for k, v in self._adapters.items()
        )
        if fits:
            with torch.no_grad():
                for name, layer in self.layers.items():
                    for side in "AB":
                        weight = getattr(layer, f"lora_{side}")[_ADAPTER].weight
                        weight.copy_(self._adapters[f"{name}.{side}"])
        if not fits or not all(
            torch.allclose(self._merged(layer), self._saved[name].to(layer.weight), 1e-3, 1e-5)
            for name, layer in self.layers.items()
        ):
            msg = (
                "`ckpt_path`: the checkpoint adapts another original; give the task the weights "
                "that it began with, or start anew without --ckpt_path"
            )
            raise ValueError(msg)
        self._saved, self._resumed = {}, False

    def _take_out(self, network: nn.Module) -> None:
        if self.layers:
            self._adapters = self._own()
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())
        self.layers = {}


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, nn.Conv2d) else 1
