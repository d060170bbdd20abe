"""Optional dependencies: imported where they are used, and named when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, extra: str) -> Any:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: Dotted name of the module, such as `"pandas"` or `"flwr.simulation"`.
        extra: The extra of this project that installs it, such as `"tabular"`.

    Returns:
        The imported module.

    Raises:
        ImportError: If the distribution is not installed. A module that is installed and fails on
            an import of its own raises that error unchanged: installing the extra would not help.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        message = f"this needs `{module}`: pip install 'erasus-pl[{extra}]'"
        raise ImportError(message, name=error.name) from error
