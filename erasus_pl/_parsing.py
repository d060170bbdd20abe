"""Make one useful line of what the argument parser says, and let a change of class be clean."""

import ast
import inspect
import itertools
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse._typehints as _typehints
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from erasus_pl._words import UsageError, did_you_mean

__all__ = ["Parser", "clean_class_changes", "condense", "is_ours", "remedy"]

_OURS = ("erasus_pl", "datamodules")
_CATALOGUE = "; `python -m erasus_pl catalogue` lists what there is"
_NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Given value|Subclass types expect|Not a valid"
    r" subclass|a class path \(str\)|a dict with|Expected a path but|Expected an? [^:]*$|$"
)
_REQUIRED = re.compile(r"the following arguments are required: (?:\w+\.)?(\w+)")
_UNKNOWN = re.compile(r"unrecognized arguments: (-\S+)|does not accept option '([\w.]+)'")
_STRAY = re.compile(r"unrecognized arguments: ([^-]\S*)")
_NO_FILE = re.compile(r"(?:File does not exist|Path is not a file|not readable): '(.+)'")
_BROKEN = re.compile(r"Problems parsing config|Unexpected config")
_NO_VALUE = re.compile(r"argument (\S+): expected .*argument")
_EXTRA = r"this needs `(\w+)`: pip install 'erasus-pl\[(\w+)"
_NO_CLASS = re.compile(
    r"(?:Unexpected import path format|Expected a dot import path string): (.+)"
    r"|Problem with given class_path '(.+)'|.*callable class: .*class_path='([\w.]+)'"
)


class Parser(LightningArgumentParser):
    """Refuses with one line that names the field, the value and the remedy."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what went wrong; parsers of parts are caught and reported on by the whole."""
        raise UsageError(message) from ex

    def parse(self, args: list[str] | None) -> Namespace:
        """Read run files and options; a new class starts from its own defaults.

        Raises:
            UsageError: one line on what cannot be used.
        """
        with clean_class_changes():
            try:
                return self.parse_args(args)
            except UsageError as error:
                raise UsageError(self._line(str(error), error)) from error

    def _line(self, message: str, error: Exception) -> str:
        if found := _REQUIRED.match(message):
            return (
                f"`{found[1]}` is missing; give it in a run file: --config conf/quickstart.yaml is "
                "one"
            )
        if found := _NO_FILE.search(message):
            return (
                f"`config`: there is no file {found[1]!r}; give the path of a run file, such as "
                "conf/quickstart.yaml"
            )
        if _BROKEN.match(message):
            return next(filter(None, map(_damage, self._configs())), message)
        if found := _UNKNOWN.search(message):
            given = (found[1] or f"--{found[2]}").partition("=")[0]
            return f"unknown option {given!r}{did_you_mean(given, self._options())}"
        if found := _STRAY.search(message):
            return f"{found[1]!r} belongs to no option; options start with --"
        if found := _NO_VALUE.search(message):
            return f"a value is missing after {found[1].rpartition('/')[2]}"
        return condense(message, error)

    def _configs(self) -> list[Path]:
        args = [part for arg in self.args for part in arg.split("=", 1)]
        return [Path(b) for a, b in itertools.pairwise(args) if a in ("-c", "--config")]

    def _options(self) -> set[str]:
        found = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action.choices, dict):
                for parser in action.choices.values():
                    found |= set(parser._option_string_actions)
        return {option for option in found if option.startswith("--")}


@contextmanager
def clean_class_changes() -> Iterator[None]:
    """While parsing, a new `class_path` starts from its own defaults.

    jsonargparse keeps those arguments of the class before that the new one also has, so that
    another strategy would silently run with the hyper-parameters of the first.
    """

    def drop(_: Any, before: Any, now: Any) -> None:
        if before and "init_args" in before and before["class_path"] != now["class_path"]:
            before["init_args"] = type(before)()

    name = "discard_init_args_on_class_path_change"
    kept = getattr(_typehints, name)
    setattr(_typehints, name, drop)
    try:
        yield
    finally:
        setattr(_typehints, name, kept)


def remedy(error: BaseException) -> str | None:
    """One line on what the user can mend, or nothing where only a traceback helps.

    Errors that this project raises say what to do; of others, those are known that wrong settings
    and checkpoints cause.
    """
    text = str(error)
    if isinstance(error, UsageError | MisconfigurationException) or is_ours(error):
        return text
    if "Does not validate against any of the Union subtypes" in text:
        cause = error.__cause__ or error
        return condense(text, error) if is_ours(cause, "jsonargparse") else None
    if text.startswith(("Error(s) in loading state_dict", "loaded state dict contains")):
        detail = next((t.strip() for t in text.splitlines()[1:]), text)
        return (
            f"`ckpt_path`: the checkpoint is of another model ({_shapes(detail)}); give "
            "one that was made with this task and strategy, or start without --ckpt_path"
        )
    return None


def _shapes(detail: str) -> str:
    found = re.match(r"size mismatch for (\S+): .*?(\[.*?\]).*?(\[.*?\])", detail)
    if found:
        return f"{found[1]} has shape {found[2]} there and {found[3]} here"
    return textwrap.shorten(detail, 160, placeholder=" …")


def is_ours(error: BaseException, *others: str) -> bool:
    """Whether an error that users cause was raised in this project's own code, or in others'."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = frames[-1].f_globals.get("__name__", "") if frames else ""
    if isinstance(error, ImportError):
        return module == "erasus_pl._extras"
    return isinstance(error, ValueError | TypeError | OSError) and (
        module.split(".")[0] in (*_OURS, *others)
    )


def condense(message: str, error: BaseException | None = None) -> str:
    """The one thing in a parser's message that the user can act on.

    Args:
        message: what jsonargparse says, over many lines, of a value that fits no type.
        error: where it comes from; its frames tell which class an unknown option was meant for.

    Returns:
        One line.
    """
    keys: list[tuple[int, str]] = []
    types = ""
    lines = message.splitlines()
    for number, line in enumerate(lines):
        text = line.strip().removeprefix("- ")
        indent = len(line) - len(line.lstrip())
        if text.startswith("Subtypes: "):
            types = text
        if found := re.match(r'Parser key "(.+)":\s*(.*)', text):
            keys = [(i, k) for i, k in keys if i < indent] + [(indent, found[1])]
            text = found[2]
        if _NOISE.match(text):
            continue
        if types or keys:
            field = ".".join(k for _, k in keys)
            return _explain(text, field, types, lines[number + 1 :], error)
    given = re.search(r"Given value: (.*)", message[message.find(types) :])
    if not types or not given:
        return " ".join(message.split())
    field = ".".join(k for _, k in keys)
    return f"`{field}` must be {_type_names(types)}, got {_value(given[1])}"


def _explain(
    text: str, field: str, types: str, rest: list[str], error: BaseException | None
) -> str:
    at = f"`{field}`: " if field else ""
    if found := re.match(r"Option '(.+)' is not accepted", text):
        name, owner = found[1], _owner(found[1], field, rest, error)
        place = f"{field}.{name}" if field else name
        where = f" of {owner.__name__}" if owner else ""
        takes = _arguments(owner) if owner else set()
        hint = did_you_mean(name, takes) or (takes and f"; it takes {', '.join(sorted(takes))}")
        return f"`{place}`: unknown option{where}{hint or ''}"
    if found := _REQUIRED.match(text):
        return f"`{field}.{found[1]}` is missing, and has no default"
    if found := re.match(r"Invalid content in sub-config file (\S+): (.*)", text):
        why = " ".join([found[2], *map(str.strip, rest[:2])]).replace('in "<unicode string>", ', "")
        return f"{at}{found[1]!r} is not YAML: {why}"
    if found := _NO_CLASS.match(text):
        name = next(filter(None, found.groups()))
        if "/" in name or name.endswith((".yaml", ".yml")):
            return f"{at}there is no file {name!r}; paths count from the file that names them"
        reason = rest[0].strip() if text.startswith("Problem") and rest else "has no attribute"
        if absent := re.search(rf"Requirement '(\w+)|{_EXTRA}", reason):
            module, extra = absent[1] or absent[2], absent[3] or absent[1]
            return f"{at}{name!r} needs `{module}`: pip install 'erasus-pl[{extra}]'"
        if "has no attribute" not in reason:
            return f"{at}{name!r}: {reason}"
        near = did_you_mean(name.rpartition(".")[2], _class_names(types))
        return f"{at}there is no class {name!r}{near or _CATALOGUE}"
    if found := re.match(r"Expected an? (.+?)\. Got value: (.*)", text):
        return f"`{field}` must be {_type_names(found[1])}, got {_value(found[2])}"
    return text if text.startswith("`") else f"{at}{text}"


def _owner(
    option: str, field: str, rest: list[str], error: BaseException | None
) -> type | None:  # the class that an unknown option was given to
    given = next((t for t in rest if "Given value: " in t), "").partition("Given value: ")[2]
    path = None
    if found := re.match(r"NestedArg\(key='(.+?)'", given):
        inner = found[1].rpartition(".")[0].removesuffix(".init_args").removesuffix("init_args")
        head, *tail = field.split(".")
        parts = [*tail, *(p for p in inner.split(".") if p and p != "init_args" and p not in tail)]
        path = _class_path(error, ".init_args.".join([head, *parts]))
    elif given.startswith(("{", "[")):
        path = _holder(ast.literal_eval(given), option)
    module, _, name = (path or "").rpartition(".")
    found_class = getattr(sys.modules.get(module), name, None)
    return found_class if isinstance(found_class, type) else None


def _class_path(error: BaseException | None, key: str) -> str | None:
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            config = frame.f_locals.get("cfg")
            if isinstance(config, Namespace) and config.get(f"{key}.class_path"):
                return str(config[f"{key}.class_path"])
        error = error.__cause__ or error.__context__
    return None


def _holder(value: Any, option: str) -> str | None:
    inner = value
    if isinstance(value, dict):
        inner = value.get("init_args") or {}
        if option in inner:
            return value.get("class_path")
        inner = list(inner.values())
    found = (_holder(v, option) for v in inner) if isinstance(inner, list) else ()
    return next(filter(None, found), None)


def _arguments(owner: type) -> set[str]:
    names: set[str] = set()
    for cls in owner.__mro__[:-1]:
        parameters = inspect.signature(cls).parameters.values()
        names |= {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names - {"params", "task", "request"}


def _class_names(types: str) -> set[str]:
    names: set[str] = set()
    for module, name in re.findall(r"([\w.]+)\.(\w+)", types):
        base = getattr(sys.modules.get(module), name, None)
        todo = [base] if isinstance(base, type) and base.__module__ != "collections.abc" else []
        while todo:
            children: list[type] = todo.pop().__subclasses__()
            todo += children
            names |= {c.__name__ for c in children if not c.__name__.startswith("_")}
    return names


def _type_names(types: str) -> str:
    found = re.findall(r"<class '(?:[\w.]+\.)?(\w+)'>|Literal\[(.+?)\]|(list)\[", types)
    names = [part for groups in found for part in groups if part]
    return " or ".join(dict.fromkeys("null" if n == "NoneType" else n for n in names)) or types


def _value(text: str) -> str:
    found = re.match(r"NestedArg\(.*val=(.*)\)$", text)
    return found[1] if found else repr(text)


def _damage(path: Path) -> str | None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"`config`: {str(path)!r} is not YAML: {where}{error.problem}; mend that line"
    except (yaml.YAMLError, OSError, ValueError) as error:
        return f"`config`: {str(path)!r} cannot be read: {error}"
    if isinstance(content, dict):
        return None
    what = "is empty" if content is None else f"holds a {type(content).__name__}"
    return (
        f"`config`: {str(path)!r} {what}; a run file has sections such as trainer, model and data: "
        "conf/quickstart.yaml is one"
    )
