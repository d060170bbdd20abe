"""Read classes and functions from source files without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Definition", "Room", "SourceError"]


class SourceError(ValueError):
    """A source file that the catalogue cannot read."""


@dataclass(frozen=True)
class Definition:
    """A class or function as its source states it.

    Args:
        name: of the class or function.
        module: dotted name of its module.
        summary: first line of its docstring.
        public: whether its module lists it in `__all__`.
        is_class: or a function.
        bases: names of base classes, without their modules.
        methods: names of methods that its own body defines.
        values: class attributes that its own body sets, unevaluated.
        about: docstring of its module.
    """

    name: str
    module: str
    summary: str
    public: bool
    is_class: bool
    bases: tuple[str, ...] = ()
    methods: frozenset[str] = frozenset()
    values: dict[str, ast.expr] = field(default_factory=dict)
    about: str = ""


class Room:
    """The classes and functions of one package.

    Args:
        folder: the package's folder.
        package: its dotted name.

    Raises:
        SourceError: a file does not parse, or has public names and no literal `__all__`.
    """

    def __init__(self, folder: Path, package: str) -> None:
        self.definitions = [
            definition
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
            for definition in _read(path, f"{package}.{path.stem}")
        ]
        self._classes = {d.name: d for d in self.definitions if d.is_class}

    def public(self) -> list[Definition]:
        """What modules list in `__all__`, by name."""
        return sorted((d for d in self.definitions if d.public), key=lambda d: d.name.lower())

    def subclasses(self, base: str) -> list[Definition]:
        """Public classes that descend from a base class of this room, by name."""
        return [d for d in self.public() if d.is_class and base in self._names(d)[1:]]

    def value(self, definition: Definition, name: str, default: Any) -> Any:
        """A literal class attribute, its own or inherited within this room.

        Raises:
            SourceError: it is set, and not to a literal.
        """
        for owner in self._lineage(definition):
            if name in owner.values:
                return _literal(owner.values[name], f"`{name}` of {owner.module}.{owner.name}")
        return default

    def defines(self, definition: Definition, method: str, below: str) -> bool:
        """Whether a class, or a base of it below the named one, defines a method."""
        for owner in self._lineage(definition):
            if owner.name == below:
                return False
            if method in owner.methods:
                return True
        return False

    def _names(self, definition: Definition) -> list[str]:
        return [d.name for d in self._lineage(definition)]

    def _lineage(self, definition: Definition) -> Iterator[Definition]:
        yield definition
        for base in definition.bases:
            if base in self._classes and base != definition.name:
                yield from self._lineage(self._classes[base])


def _read(path: Path, module: str) -> Iterator[Definition]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}, line {line}" if line else str(path)
        message = f"{where}: {getattr(error, 'msg', error)}; mend this file, it cannot be imported"
        raise SourceError(message) from error
    constants = _assignments(tree.body)
    if "__all__" not in constants:
        if path.name.startswith("_"):
            return
        message = f"{path}: no `__all__`; list the module's public names in it"
        raise SourceError(message)
    public = set(_literal(constants["__all__"], f"`__all__` of {path}"))
    about = ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield _definition(node, module, node.name in public, about)


def _definition(
    node: ast.ClassDef | ast.FunctionDef, module: str, public: bool, about: str
) -> Definition:
    summary = (ast.get_docstring(node) or "").partition("\n")[0]
    if isinstance(node, ast.FunctionDef):
        return Definition(node.name, module, summary, public, False, about=about)
    bases = tuple(
        base.attr if isinstance(base, ast.Attribute) else base.id
        for base in node.bases
        if isinstance(base, ast.Attribute | ast.Name)
    )
    methods = frozenset(n.name for n in node.body if isinstance(n, ast.FunctionDef))
    values = _assignments(node.body)
    return Definition(node.name, module, summary, public, True, bases, methods, values, about)


def _assignments(body: list[ast.stmt]) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = node.value
        elif isinstance(node, ast.Assign):
            found |= {t.id: node.value for t in node.targets if isinstance(t, ast.Name)}
    return found


def _literal(node: ast.expr, what: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        message = f"{what} must be a literal, so that it can be read without importing"
        raise SourceError(message) from error
