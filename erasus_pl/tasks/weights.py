"""Read and write a network's weights, and draw them anew."""

import os
import pickle
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "load_safely",
    "matching_weights",
    "read_weights",
    "reset_parameters",
    "reset_trainable",
    "save_atomically",
]

_BEGINNINGS = (b"PK", b"\x80")  # of what torch.save writes, now and before it wrote archives


def load_safely(path: Path, field: str, remedy: str, map_location: Any = None) -> Any:
    """`torch.load` with `weights_only=True`, and one line on what is wrong.

    Args:
        path: the file.
        field: the option that named it.
        remedy: what to do if it cannot be used.
        map_location: device of the tensors; the CPU by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or could run code.
    """
    if not path.is_file():
        msg = f"`{field}`: there is no file {str(path)!r}; give the path of a .ckpt or .pt file"
        raise FileNotFoundError(msg)
    damaged = f"`{field}`: {str(path)!r} is truncated or no checkpoint; {remedy}"
    with path.open("rb") as file:
        if not file.read(2).startswith(_BEGINNINGS):
            raise ValueError(damaged)
    try:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"`{field}`: {str(path)!r} holds more than tensors and plain values and was not "
            f"loaded, since loading it could run code; {remedy}"
        )
        raise ValueError(msg) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(damaged) from error


def save_atomically(content: Any, path: Path) -> None:
    """Write with `torch.save` to a temporary name in the same folder, then rename.

    Raises:
        OSError: the disk is full or not writable; an earlier file of that name is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_weights(path: str | Path) -> Mapping[str, Tensor]:
    """Read a state dict of tensors, from a Lightning checkpoint or a plain `torch.save`.

    The file is read with ``weights_only=True``: code inside it is never run.

    Args:
        path: a `.ckpt` or `.pt` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, not a checkpoint, or holds more than tensors.
    """
    remedy = "save the state dict alone: torch.save(model.state_dict(), path)"
    content = load_safely(Path(path), "checkpoint", remedy)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    tensors = isinstance(content, Mapping) and all(isinstance(v, Tensor) for v in content.values())
    if not tensors or not content:
        msg = (
            f"`checkpoint`: {str(path)!r} holds no state dict; save one with "
            "torch.save(model.state_dict(), path)"
        )
        raise ValueError(msg)
    return content


def matching_weights(path: str | Path, network: nn.Module) -> dict[str, Tensor]:
    """Read the state dict of a network from a checkpoint of it, of its task or of a strategy.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another network.
    """
    found = read_weights(path)
    own = network.state_dict()
    for prefix in ("", "network.", "task.network."):
        stripped = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        if stripped.keys() == own.keys():
            break
    else:
        missing = sorted(own.keys() - found.keys())[:3]
        msg = (
            f"`checkpoint`: {str(path)!r} is of another network: it lacks {missing}; give the "
            "checkpoint of this task, or the network it was trained with"
        )
        raise ValueError(msg)
    for key, value in stripped.items():
        if value.shape != own[key].shape:
            msg = (
                f"`checkpoint`: {str(path)!r} is of another network: {key} has shape "
                f"{tuple(value.shape)}, this network needs {tuple(own[key].shape)}"
            )
            raise ValueError(msg)
    return stripped


def reset_parameters(module: nn.Module) -> None:
    """Initialise a network's parameters and buffers anew, by each module's `reset_parameters`.

    Raises:
        TypeError: a module holds parameters or persistent buffers and has no such method.
    """
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        if not list(module.children()):
            return
    elif module._parameters or module._buffers:
        own = [
            k for k, v in (*module._parameters.items(), *module._buffers.items()) if v is not None
        ]
        persistent = [k for k in own if k not in module._non_persistent_buffers_set]
        if persistent:
            msg = (
                f"`network`: {type(module).__name__} holds {persistent} and has no "
                "`reset_parameters`, so it cannot be retrained from scratch; add that method"
            )
            raise TypeError(msg)
    for child in module.children():
        reset_parameters(child)


def reset_trainable(network: nn.Module, reset: Callable[[], None], seed: int) -> None:
    """Initialise a network anew, under a seed, except for what is frozen.

    Args:
        network: what is reset; its frozen parameters, and the buffers of layers whose every
            parameter is frozen, are left bit for bit.
        reset: draws all of it anew.
        seed: of the draw; the generator is put back as it was.
    """
    frozen: dict[str, Tensor] = {}
    for prefix, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        kept = {k: p for k, p in own.items() if not p.requires_grad}
        if kept and len(kept) == len(own):
            kept |= dict(module.named_buffers(recurse=False))
        frozen |= {f"{prefix}.{k}".removeprefix("."): v.detach().clone() for k, v in kept.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reset()
    now = dict(network.named_parameters()) | dict(network.named_buffers())
    with torch.no_grad():
        for name, value in frozen.items():
            now[name].copy_(value)
