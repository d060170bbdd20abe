"""The project's own promises: what installs, what is imported, what the files may say."""

import ast
import fnmatch
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import erasus_pl

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("erasus_pl", "datamodules")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
STANDARD = sys.stdlib_module_names
# Where a distribution's module is not called what the distribution is called.
MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}

# Written so that no pattern matches itself.
UNWANTED = {
    "a path of one machine": r"(?<![\w.~])/(?:wor[k]|roo[t]|User[s])/|/hom[e]/\w+/|/opt/whee[l]s",
    "a package registry": r"(?i)\bpy[p]i\b|python[h]osted|npm[j]s|index-ur[l]|whl/cp[u]",
    "a tracker's number": r"(?i)\b(?:issue|session)s? (?:no\. ?)?#?\d",
    "a file that does not come with the project": r"shared/(?:referenc[e]|DESIG[N])",
}


def _requirements(*extras: str) -> list[Requirement]:
    """The core's requirements and those of the extras, without references to the project itself."""
    texts = [
        *PROJECT["project"]["dependencies"],
        *(text for extra in extras for text in EXTRAS[extra]),
    ]
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if requirement.name != "erasus-pl"]


def _module(requirement: Requirement) -> str:
    name = canonicalize_name(requirement.name)
    return MODULES.get(name, name.replace("-", "_"))


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def _imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[int, str, bool]]:
    """Line, top-level module and whether in a function, of each absolute import that runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0], inside
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0], inside
        else:
            deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(node, deeper)


def _required(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, top-level module and extra of each `require(module, extra)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
            module, extra = (ast.literal_eval(argument) for argument in node.args)
            yield node.lineno, module.split(".")[0], extra


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_everything_imports_without_torchvision():
    distributions = {dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()}
    if "torchvision" in distributions and not os.environ.get("CI"):
        pytest.skip("this environment has torchvision; CI's has not")
    assert "torchvision" not in distributions
    program = (
        "import importlib, pkgutil, sys\n"
        "for name in sys.argv[1:]:\n"
        "    root = importlib.import_module(name)\n"
        "    for found in pkgutil.walk_packages(root.__path__, f'{name}.'):\n"
        "        if not found.name.endswith('.__main__'):\n"
        "            importlib.import_module(found.name)\n"
        "            print(found.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *PACKAGES], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {name.split(".")[0] for name in done.stdout.split()} == set(PACKAGES)


def test_importing_the_package_loads_nothing():
    program = "import sys; old = {*sys.modules}; import erasus_pl; print(*({*sys.modules} - old))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name for name in done.stdout.split() if name.split(".")[0] not in STANDARD}
    assert loaded == {"erasus_pl"}


def test_only_core_dependencies_are_imported_outside_functions():
    allowed = STANDARD | set(PACKAGES) | {_module(core) for core in _requirements()}
    stray = []
    for path, tree in _sources():
        required = {module for _, module, _ in _required(tree)}
        stray += [
            f"{path.relative_to(ROOT)}:{line}: {module}"
            for line, module, inside in _imports(tree)
            if module not in allowed and not (inside and module in required)
        ]
    assert not stray, "declare it as a core dependency, or load it by `require(module, extra)`"


def test_each_required_module_is_in_the_extra_that_its_error_names():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} is not in the extra {extra!r}"
        for path, tree in _sources()
        for line, module, extra in _required(tree)
        if module not in {_module(Requirement(text)) for text in EXTRAS.get(extra, [])}
    ]
    assert not wrong


def test_all_holds_every_extra_but_dev():
    (everything,) = (Requirement(text) for text in EXTRAS["all"])
    assert everything.name == "erasus-pl"
    assert everything.extras == EXTRAS.keys() - {"all", "dev"}


def test_every_core_dependency_says_why_its_floor_is_where_it_is():
    listed = re.search(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    lines = listed[1].splitlines()
    assert len(lines) == len(PROJECT["project"]["dependencies"])
    assert not [line for line in lines if not re.search(r'>=.*",\s+# \w', line)]


def test_constraints_pin_what_the_makefile_installs():
    extras = re.search(r"^EXTRAS \?= (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split(",")
    missing = {canonicalize_name(need.name) for need in _requirements(*extras)} - _pins().keys()
    assert not missing


def test_constraints_lie_within_the_ranges():
    pins = _pins()
    pinned = [need for need in _requirements(*EXTRAS) if canonicalize_name(need.name) in pins]
    outside = [
        f"{need} is pinned to {pins[canonicalize_name(need.name)]}"
        for need in pinned
        if not need.specifier.contains(pins[canonicalize_name(need.name)])
    ]
    assert not outside


def test_constraints_shut_torchvision_out():
    assert re.search(r"^torchvision<0$", (ROOT / "constraints.txt").read_text(), re.M)
    assert "torchvision" not in {need.name for need in _requirements(*EXTRAS)}


@pytest.mark.skipif(not os.environ.get("CI"), reason="the constraints bind CI only")
def test_ci_runs_on_the_torch_of_the_constraints():
    assert importlib.metadata.version("torch").split("+")[0] == _pins()["torch"]


def test_version_is_the_same_everywhere():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "erasus_pl.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert citation["version"] == erasus_pl.__version__ == released[1]


def test_wheels_hold_every_file_of_the_packages(tracked):
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    left_out = [
        path
        for path in tracked
        if path.relative_to(ROOT).parts[0] in PACKAGES
        and path.suffix != ".py"
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
    ]
    assert not left_out


def test_every_config_is_run_by_a_test():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_conf.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    configs = [path.relative_to(ROOT / "conf") for path in sorted((ROOT / "conf").rglob("*.yaml"))]
    assert configs
    left_out = [path for path in configs if path.with_suffix("").as_posix() not in collected.stdout]
    assert not left_out


@pytest.mark.parametrize("what", UNWANTED)
def test_no_file_names(what, tracked):
    pattern = re.compile(UNWANTED[what])
    found = []
    for path in tracked:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
            for number, line in enumerate(lines, 1)
            if pattern.search(line)
        ]
    assert not found
