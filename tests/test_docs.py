"""Every command and every snippet in the README and the docs is run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from erasus_pl.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text("utf-8")
COMMAND = re.compile(r"`?(python -m (?:erasus_pl|benchmarks)[^`\n]*|python benchmarks/[^`\n]*)`?")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _commands(text):
    found = [m.group(1).strip().rstrip(".,:") for m in COMMAND.finditer(text)]
    return list(dict.fromkeys(c for c in found if "…" not in c))


@pytest.mark.slow
def test_the_readmes_commands_run_in_the_order_they_are_given(checkout, capsys):
    commands = [c for c in _commands(README) if c.startswith("python -m erasus_pl")]
    assert "python -m erasus_pl fit --config conf/quickstart.yaml" in commands
    for command in commands:
        try:
            status = main(shlex.split(command)[3:])
        except SystemExit as stop:
            status = stop.code or 0
        assert status == 0, (command, capsys.readouterr().err)
    for name in ("report.html", "report.json", "report.md", "config.yaml"):
        assert (checkout / "runs/quickstart" / name).stat().st_size > 0


def test_the_make_targets_of_the_readme_exist():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        plan = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
        )
        if target == "quickstart":
            assert "-m erasus_pl fit --config conf/quickstart.yaml" in plan.stdout


def test_the_python_snippet_unlearns_a_users_own_network_in_under_15_lines(checkout):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    statements = [line for line in snippet.splitlines() if line.strip()]
    assert len(statements) <= 15
    torch.manual_seed(0)
    x = torch.randn(600, 8)
    y = (x[:, :2].argmax(1) + 2 * (x[:, 2] > 0)).long()
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    names = {
        "network": network,
        "train": TensorDataset(x[:400], y[:400]),
        "held_out": TensorDataset(x[400:], y[400:]),
    }
    exec(compile(snippet, "README.md", "exec"), names)
    assert (checkout / "runs/mine/report.html").exists()
    assert any(not torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_the_benchmarks_that_the_pages_name_are_run_by_their_tests():
    tested = (ROOT / "tests/benchmarks/test_scripts.py").read_text("utf-8")
    named = {c.split("/")[1].split(".")[0] for p in PAGES for c in _commands(p.read_text("utf-8"))
             if c.startswith("python benchmarks/")}  # fmt: skip
    assert named == {p.stem for p in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert all(f'load("{name}")' in tested for name in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_the_pages_name_exist(page):
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:conf|docs|erasus_pl|benchmarks|tests|slurm)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
    for path in re.findall(r"conf/[\w/]+\.yaml", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
