"""Every YAML under conf/ is run, from the command line's entry point to what it leaves behind."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from erasus_pl import strategies
from erasus_pl.__main__ import main
from erasus_pl.strategies import Strategy

CONF = Path(__file__).parents[1] / "conf"
DATA = Path(os.environ.get("ERASUS_PL_DATA", CONF.parents[1] / "shared" / "data"))
NEEDS = {
    "location30": "tabular/location30.npz",
    "mnist": "vision/mnist_full.npz",
    "cifar10": "vision/cifar10_10k.npz",
    "adult": "tabular/adult.csv.gz",
}


def _name(path):
    return path.relative_to(CONF).with_suffix("").as_posix()


def _files(*folders):
    return sorted(p for folder in folders for p in (CONF / folder).glob("*.yaml"))


OVERLAYS = ("debug",)


def _is_run(path):
    return path.stem not in OVERLAYS


def _quick(folder):
    return [
        f"--trainer.default_root_dir={folder}",
        f"--evidence.cache={folder}/cache",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]


def _parameters(paths):
    return [pytest.param(p, id=_name(p)) for p in paths]


def _skip_without_data(name):
    path = NEEDS.get(name.split("_")[0])
    if path and not (DATA / path).exists():
        pytest.skip(
            f"{path} is absent; set ERASUS_PL_DATA to the folder that holds it (docs/data.md)"
        )


def _data_arguments(path):
    part = NEEDS.get(path.stem.split("_")[0])
    return [f"--data.init_args.path={DATA / part}"] if part else []


@pytest.mark.parametrize("path", _parameters(p for p in _files(".") if _is_run(p)))
def test_run_file_unlearns_and_reports(path, tmp_path, capsys):
    _skip_without_data(path.stem)
    arguments = [
        "fit", "--config", str(path), *_quick(tmp_path), *_data_arguments(path),
        "--task.init_args.epochs=1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=4",
        "--trainer.limit_val_batches=1", "--evidence.retrained=1",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "report.html").stat().st_size > 0


@pytest.mark.parametrize("path", _parameters(_files("train")))
def test_train_file_trains_an_original(path, tmp_path, capsys):
    _skip_without_data(path.stem)
    arguments = [
        "fit", "--config", str(path), *_quick(tmp_path), *_data_arguments(path),
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1", "--data.init_args.batch_size=8",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("path", _parameters(_files("strategy", "selector")))
def test_part_runs_on_digits(path, tmp_path, capsys):
    """Each strategy and selector by its own part, in a run file that names nothing else of it."""
    run = {
        "trainer": {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 1},
        "task": str(CONF / "task/digits.yaml"),
        "request": str(CONF / "request/class.yaml"),
        "data": str(CONF / "data/digits.yaml"),
        "model": str(CONF / "strategy/gradient_ascent.yaml"),
        "evidence": {"enabled": False},
    }
    run["model" if path.parent.name == "strategy" else "selector"] = str(path)
    part = yaml.safe_load(path.read_text())
    needs = getattr(strategies, part["class_path"].rsplit(".", 1)[-1], Strategy).requires
    network = "--task.init_args.network=ConvNet"
    if "shards" in needs:
        run["task"] = str(CONF / "task/digits_sharded.yaml")
        network = "--task.init_args.network.init_args.shards=2"
    elif "convolutions" not in needs:
        network = "--task.init_args.network.init_args.hidden=[16]"
    stages = part.get("init_args", {}).get("epochs")
    if path.parent.name == "strategy" and stages:
        run["trainer"]["max_epochs"] = sum(stages)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    arguments = ["fit", "--config", str(file), *_quick(tmp_path), "--task.init_args.epochs=1"]
    assert main([*arguments, network]) == 0, capsys.readouterr().err
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    resolved = written["model" if path.parent.name == "strategy" else "selector"]
    assert resolved["class_path"].rsplit(".", 1)[-1] == part["class_path"].rsplit(".", 1)[-1]
    _holds(resolved.get("init_args", {}), part.get("init_args", {}))


def _holds(resolved, part):
    for name, value in part.items():
        if isinstance(value, dict):
            _holds(resolved[name], value)
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            for given, entry in zip(resolved[name], value, strict=True):
                _holds({name: given}, {name: entry})
        elif name == "class_path":
            assert resolved[name].rsplit(".", 1)[-1] == value.rsplit(".", 1)[-1]
        else:
            assert resolved[name] == value, name


def _values(node):
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        return {v for child in node for v in _values(child)}
    return {str(node)}


@pytest.mark.parametrize("path", _parameters(_files("task", "request", "data")))
def test_part_is_used_by_a_run_file_that_is_run(path, tmp_path, capsys):
    """Or, for a request that none names, run on the data whose columns it names."""
    runs = [p for p in [*_files("."), *_files("train")] if _is_run(p)]
    named = f"{path.parent.name}/{path.name}"
    if any(_values(yaml.safe_load(r.read_text())) & {named, f"../{named}"} for r in runs):
        return
    assert path.parent.name == "request", f"no run file names {named}"
    arguments = [
        "fit", "--config", str(CONF / "synthetic.yaml"), f"--request={path}", *_quick(tmp_path),
        "--task.init_args.epochs=1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1", "--evidence.enabled=false",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", _parameters(p for p in _files(".") if not _is_run(p)))
def test_overlay_shortens_a_run(path, tmp_path, capsys):
    arguments = ["fit", "--config", str(CONF / "quickstart.yaml"), "--config", str(path)]
    assert main([*arguments, *_quick(tmp_path)]) == 0, capsys.readouterr().err
    assert (tmp_path / "report.html").stat().st_size > 0


@pytest.mark.parametrize("path", _parameters(_files("logger")))
def test_overlay_is_run_by_the_logger_tests(path):
    assert path.name in (CONF.parent / "tests/test_loggers.py").read_text()


@pytest.mark.parametrize("path", _parameters(_files("restrict", "robust")))
def test_overlay_is_appended_to_a_run_and_its_resumption(path, tmp_path, capsys):
    if path.stem == "low_rank" and find_spec("peft") is None:
        pytest.skip("needs peft: pip install 'erasus-pl[llm]'")
    earlier = tmp_path / "earlier.yaml"
    first = {"class_path": "lightning.pytorch.callbacks.ModelSummary"}
    earlier.write_text(yaml.safe_dump({"trainer": {"callbacks": [first]}}))
    arguments = ["fit", "--config", str(CONF / "quickstart.yaml"), "--config", str(earlier)]
    arguments += ["--config", str(path), *_quick(tmp_path), "--task.init_args.epochs=1"]
    arguments += ["--evidence.enabled=false"]
    assert main([*arguments, "--trainer.max_epochs=1"]) == 0, capsys.readouterr().err
    assert main([*arguments, "--trainer.max_epochs=2", "--resume"]) == 0, capsys.readouterr().err
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["callbacks"]
    (part,) = yaml.safe_load(path.read_text())["trainer"]["callbacks+"]
    assert [c["class_path"] for c in written] == [first["class_path"], part["class_path"]]
    _holds(written[1].get("init_args", {}), part["init_args"])


@pytest.mark.parametrize("path", _parameters(_files("benchmark")))
def test_suite_begins_to_run(path, tmp_path, capsys):
    """What it runs of its first scenario and strategy in half a minute; a later call goes on."""
    suite = yaml.safe_load(path.read_text())
    scenario, strategy = next(iter(suite["scenarios"])), next(iter(suite["strategies"]))
    arguments = [
        "benchmark", "--config", str(path), "--folder", str(tmp_path), "--seeds", "1",
        "--scenarios", scenario, "--strategies", strategy, "--minutes", "0.4",
        "--table", str(tmp_path / "runs.csv"), "--evidence", str(tmp_path / "evidence.json"),
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert "runs: " in capsys.readouterr().out
    assert list((tmp_path / "rows").glob("*.json"))
    assert (tmp_path / "results.md").read_text().startswith(f"# {suite['title']}")
