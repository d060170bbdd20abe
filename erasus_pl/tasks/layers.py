"""The layers of a network, and how to hold some of them still while the others learn."""

from torch import nn

__all__ = ["Hold", "layers"]


def layers(network: nn.Module) -> list[list[nn.Module]]:
    """The parameterised layers of a network, first to last in the order they are registered.

    Each begins with a module that itself owns a weight of at least two dimensions; modules after it
    that own only vectors or buffers, such as batch norms, belong to it.
    """
    found: list[list[nn.Module]] = []
    early: list[nn.Module] = []
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if any(p.dim() > 1 for p in own):
            found.append([module])
        elif own or next(module.buffers(recurse=False), None) is not None:
            (found[-1] if found else early).append(module)
    if found:
        found[0] = early + found[0]
    return found


class Hold:
    """Keeps the parameters and buffers of modules as they are, until released.

    Args:
        modules: what is held; each stands for what it owns itself, not for its children.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        own = (p for m in modules for p in m.parameters(recurse=False))
        self.parameters = [p for p in own if p.requires_grad]
        self.modes: list[bool] = []
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def buffers(self) -> None:
        """Put the modules in eval mode, where batch norms leave their statistics alone."""
        self.modes = [m.training for m in self.modules]
        for module in self.modules:
            module.training = False

    def release(self) -> None:
        """Put everything back; what was frozen before stays frozen."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        for module, mode in zip(self.modules, self.modes, strict=False):
            module.training = mode
        self.parameters, self.modes = [], []
