"""Parts of a network by their names."""

from __future__ import annotations

import fnmatch

from torch import nn

__all__ = ["named_parameters"]


def named_parameters(network: nn.Module, patterns: list[str], field: str) -> set[nn.Parameter]:
    """The parameters that are named, or lie in a module that is.

    Args:
        network: what they belong to.
        patterns: dotted names of modules or parameters, with shell wildcards.
        field: the option that gave them.

    Raises:
        ValueError: a pattern names nothing, or all that is named is frozen.
    """
    names = dict(network.named_parameters(remove_duplicate=False))
    found: set[nn.Parameter] = set()
    for pattern in patterns:
        fits = [n for n in names if any(fnmatch.fnmatchcase(p, pattern) for p in _prefixes(n))]
        if not fits:
            known = ", ".join(dict.fromkeys(n.rpartition(".")[0] or n for n in names))
            msg = f"`{field}`: {pattern!r} names nothing in this network; it has {known}"
            raise ValueError(msg)
        found |= {names[n] for n in fits}
    if not any(p.requires_grad for p in found):
        msg = f"`{field}`: all of {', '.join(patterns)} is frozen; set requires_grad on some of it"
        raise ValueError(msg)
    return found


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
