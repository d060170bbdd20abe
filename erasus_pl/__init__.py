"""Machine unlearning on PyTorch Lightning. Importing the package itself loads nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasus_pl.loading import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from erasus_pl.loading import load

        return load
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
