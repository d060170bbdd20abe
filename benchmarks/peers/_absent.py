"""A stand-in for torchvision, which cannot be imported beside the torch that all sides share.

Peers import it at module level for data sets that are not used here. Whatever they take from it can
be named, subclassed and constructed; calling what was constructed raises. The one part that works
is `transforms.v2.Compose`, which applies functions one after the other.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types

__all__ = ["install"]

_SUBMODULES = ("datasets", "functional", "models", "transforms", "utils", "v2")


class _Absent:
    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        msg = f"torchvision is not installed: {type(self).__name__} was called"
        raise RuntimeError(msg)


class _Compose:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, value):
        for step in self.steps:
            value = step(value)
        return value


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _SUBMODULES:
            return importlib.import_module(f"{self.__name__}.{name}")
        if self.__name__ == "torchvision.transforms.v2" and name == "Compose":
            return _Compose
        return type(name, (_Absent,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def install() -> None:
    """Answer every `import torchvision…` from here on; call it after what must not see it."""
    sys.meta_path.append(_Finder())
