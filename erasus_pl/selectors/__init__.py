"""Selectors: what to spend the work on. A new file in this folder is found by itself."""

import importlib
import pkgutil

from erasus_pl.selectors.base import Coreset, Selector

__all__ = ["Coreset", "Selector"]

for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith("_"):
        continue
    _found = importlib.import_module(f"{__name__}.{_module.name}")
    for _name in _found.__all__:
        _value = getattr(_found, _name)
        if isinstance(_value, type) and issubclass(_value, Selector) and _value is not Selector:
            globals()[_name] = _value
            __all__ += [_name]
