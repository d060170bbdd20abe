"""Datamodules: one file per kind of data. A new file in this folder is found by itself."""

import importlib
import pkgutil

from datamodules.base import UnlearningDataModule
from datamodules.datasets import ArrayDataset, MapDataset, Pools, View

__all__ = ["ArrayDataset", "MapDataset", "Pools", "UnlearningDataModule", "View"]

for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith("_"):
        continue
    _found = importlib.import_module(f"{__name__}.{_module.name}")
    for _name in _found.__all__:
        _value = getattr(_found, _name)
        if (
            isinstance(_value, type)
            and issubclass(_value, UnlearningDataModule)
            and _value is not UnlearningDataModule
        ):
            globals()[_name] = _value
            __all__ += [_name]
