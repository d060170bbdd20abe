"""The verbs from end to end, on runs that take a second."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from erasus_pl import __version__, cli
from erasus_pl.__main__ import VERBS, main
from erasus_pl._console import Progress
from erasus_pl.cli import ErasusCLI
from erasus_pl.tasks import Task

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
RUN = ["--config", str(CONF / "quickstart.yaml"), "--config", str(CONF / "debug.yaml")]
QUIET = ["--trainer.enable_progress_bar=false"]
SAVED = ["--config", "runs/quickstart/config.yaml", *QUIET]
SPLITS = ("forget", "retain", "test", "holdout")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a verb in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def verb(*args):
        capsys.readouterr()
        assert main([*map(str, args)]) == 0
        return capsys.readouterr().out

    return verb


@pytest.fixture
def finished(run):
    return run("fit", *RUN, *QUIET)


def _weights(path="runs/quickstart/checkpoints/last.ckpt"):
    return torch.load(path, weights_only=True)["state_dict"]


def test_help_needs_no_torch_and_lists_every_verb():
    code = "import sys; from erasus_pl.__main__ import main; main(['--help']); main(['--version'])"
    code += "; sys.exit('torch' in sys.modules)"
    begun = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert os.times().children_user - begun < 0.5
    for verb, about in VERBS.items():
        assert f"  {verb:<10} {about}" in done.stdout
    assert done.stdout.endswith(f"erasus_pl {__version__}\n")
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_verbs_of_the_help_are_those_there_are():
    assert set(VERBS) == {*ErasusCLI.subcommands(), "catalogue", "benchmark"}


def test_help_of_a_verb_names_its_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in ("resume", "task", "request", "selector", "evidence"))


def test_fit_ends_with_a_report(finished, tmp_path):
    assert "original: trained in" in finished
    assert "report: runs/quickstart/report.html" in finished
    made = {p.name for p in (tmp_path / "runs" / "quickstart").iterdir()}
    assert {"report.html", "report.json", "report.md", "config.yaml", "checkpoints"} <= made
    report = json.loads((tmp_path / "runs" / "quickstart" / "report.json").read_text())
    assert set(report["models"]) == {"original", "unlearned"}


def test_a_second_run_reuses_the_original_and_says_so(finished, run):
    kept = {p: p.stat().st_mtime_ns for p in Path("runs/cache").iterdir()}
    assert "original: reused, trained before" in run("fit", *RUN, *QUIET)
    assert kept == {p: p.stat().st_mtime_ns for p in Path("runs/cache").iterdir()}


def test_the_original_does_not_depend_on_which_layers_unlearning_holds(finished, run):
    (kept,) = Path("runs/cache").glob("original*")
    before = _weights(kept)
    kept.unlink()
    out = run("fit", *RUN, *QUIET, f"--model={CONF}/strategy/cf_k.yaml")
    assert "original: trained" in out
    for key, value in _weights(kept).items():
        assert torch.equal(value, before[key]), key


def test_the_gold_is_kept_for_the_request_and_no_other(run):
    gold = [*RUN, *QUIET, "--evidence.retrained=2"]
    out = run("fit", *gold)
    assert "retrained: trained in" in out
    assert "retrained (seed 2): trained in" in out
    assert "retrained (seed 2): reused" in run("fit", *gold)
    out = run("fit", *gold, "--request.init_args.classes=[4]")
    assert "original: reused" in out
    assert "retrained: trained in" in out


def test_evaluate_writes_the_report_anew_from_what_is_kept(finished, run):
    before = json.loads(Path("runs/quickstart/report.json").read_text())
    config = Path("runs/quickstart/config.yaml").read_bytes()
    for name in ("report.html", "report.json", "report.md"):
        Path("runs/quickstart", name).unlink()
    out = run("evaluate", *SAVED)
    assert "original: reused" in out
    assert "report: runs/quickstart/report.html" in out
    after = json.loads(Path("runs/quickstart/report.json").read_text())
    timed = ("Seconds", "Time ratio")
    for model, measures in before["measures"].items():
        for old, new in zip(measures, after["measures"][model], strict=True):
            assert old == new or old["name"] in timed
    assert after["curves"] == before["curves"]
    assert Path("runs/quickstart/config.yaml").read_bytes() == config


@pytest.mark.parametrize("verb", ["validate", "test"])
@pytest.mark.parametrize(
    "checkpoint",
    [[], ["--ckpt_path", "last"], ["--ckpt_path", "runs/quickstart/checkpoints/last.ckpt"]],
)
def test_validate_and_test_show_one_line_for_each_set(verb, checkpoint, finished, run):
    rows = [line.split() for line in run(verb, *SAVED, *checkpoint).splitlines()]
    found = {row[0]: [float(v) for v in row[1:]] for row in rows if row and row[0] in SPLITS}
    assert tuple(found) == SPLITS
    report = json.loads(Path("runs/quickstart/report.json").read_text())
    measures = {m["name"]: m["value"] for m in report["measures"]["unlearned"]}
    assert found["test"][1] == pytest.approx(measures["TA"], abs=1e-4)
    assert found["forget"][1] == pytest.approx(1 - measures["UA"], abs=1e-4)


def test_predict_writes_outputs_that_are_the_models(finished, run):
    assert "predictions: runs/quickstart/predictions.pt" in run("predict", *SAVED)
    found = torch.load("runs/quickstart/predictions.pt", weights_only=True)
    assert tuple(found) == SPLITS
    sizes = {split: len(part["index"]) for split, part in found.items()}
    counts = json.loads(Path("runs/quickstart/report.json").read_text())["manifest"]["counts"]
    assert sizes == {split: counts[split] for split in SPLITS}
    both = torch.cat([found["forget"]["index"], found["retain"]["index"]])
    assert torch.equal(both.sort().values, torch.arange(counts["forget"] + counts["retain"]))
    from sklearn.datasets import load_digits

    import datamodules
    from erasus_pl import load

    data = datamodules.DigitsDataModule()
    data.setup()
    images = data.train_set.columns["input"][found["forget"]["index"]]
    with torch.no_grad():
        expected = load("runs/quickstart").network(images)
    assert torch.allclose(found["forget"]["outputs"], expected, atol=1e-5)
    assert len(load_digits().target) == sum(sizes.values())


def test_a_saved_configuration_runs_again_to_the_same_weights(finished, run):
    config = Path("runs/quickstart/config.yaml").read_text()
    before = _weights()
    out = run("fit", *SAVED)
    assert "original: reused" in out
    assert Path("runs/quickstart/config.yaml").read_text() == config
    after = _weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "ckpt_path" not in yaml.safe_load(config)


def test_print_config_can_be_run(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", *RUN, "--print_config"])
    assert stop.value.code == 0
    (tmp_path / "whole.yaml").write_text(capsys.readouterr().out)
    run("fit", "--config", "whole.yaml", *QUIET, "--evidence.enabled=false")


@pytest.mark.parametrize("flag", [["--resume"], ["--ckpt_path", "last"]])
def test_resume_goes_on_where_the_run_ended(flag, run):
    first = [*RUN, *QUIET, "--evidence.enabled=false"]
    run("fit", *first, "--trainer.max_epochs=2")
    whole = _weights()
    run("fit", *first, "--trainer.max_epochs=1")
    half = _weights()
    run("fit", *first, "--trainer.max_epochs=2", *flag)
    resumed = _weights()
    assert any(not torch.equal(half[name], whole[name]) for name in whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert "ckpt_path" not in yaml.safe_load(Path("runs/quickstart/config.yaml").read_text())


def test_a_new_run_keeps_the_last_checkpoint_of_the_one_before(finished, run):
    before = _weights()
    run("fit", *RUN, *QUIET, "--seed_everything=1", "--evidence.enabled=false")
    previous = _weights("runs/quickstart/checkpoints/previous.ckpt")
    assert all(torch.equal(before[name], previous[name]) for name in before)


def test_a_refused_run_leaves_the_checkpoint_where_it_is(finished, capsys):
    assert main(["fit", *RUN, *QUIET, "--request.init_args.classes=[77]"]) == 2
    assert Path("runs/quickstart/checkpoints/last.ckpt").is_file()


def _resolved(capsys, *args):
    with pytest.raises(SystemExit):
        main(["fit", *RUN, *args, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_a_class_changed_on_the_command_line_starts_from_its_own_defaults(capsys):
    ours = ["--model", "NegGradPlus", "--model.alpha=0.5", "--model.optimizer=SGD"]
    ours += ["--model.optimizer.lr=0.3"]
    changed = _resolved(capsys, *ours, "--model", "SCRUB")["model"]
    assert changed["class_path"] == "erasus_pl.strategies.SCRUB"
    assert changed == _resolved(capsys, "--model", "SCRUB")["model"]
    assert changed["init_args"]["optimizer"] is None
    assert changed["init_args"]["alpha"] != 0.5


def test_a_nested_class_changed_on_the_command_line_starts_from_its_own_defaults(capsys):
    ours = ["--model.optimizer=SGD", "--model.optimizer.lr=0.3", "--model.optimizer.weight_decay=9"]
    changed = _resolved(capsys, *ours, "--model.optimizer=AdamW")["model"]["init_args"]
    assert changed["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert changed["optimizer"]["init_args"]["lr"] == 0.001
    assert changed["optimizer"]["init_args"]["weight_decay"] == 0.01


def test_a_class_changed_by_a_second_file_starts_from_its_own_defaults(capsys, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text("model:\n  class_path: erasus_pl.strategies.SCRUB\n")
    first = ["--model", "NegGradPlus", "--model.alpha=0.5"]
    changed = _resolved(capsys, *first, "--config", str(over))["model"]
    assert changed == _resolved(capsys, "--model", "SCRUB")["model"]


def test_the_same_class_named_again_keeps_what_was_set(capsys):
    again = ["--model=NegGradPlus", "--model.alpha=0.5", "--model=NegGradPlus"]
    assert _resolved(capsys, *again)["model"]["init_args"]["alpha"] == 0.5


def test_a_checkpoint_names_no_class_and_overrides_nothing(finished, capsys):
    """Lightning would take the configuration from the checkpoint's hyper-parameters."""
    path = "runs/quickstart/checkpoints/last.ckpt"
    assert "hyper_parameters" not in torch.load(path, weights_only=True)
    with_it = _resolved(capsys, "--ckpt_path", path, "--data.batch_size=7")
    assert with_it["data"]["init_args"]["batch_size"] == 7
    assert cli.LightningCLI._parse_ckpt_path is not ErasusCLI._parse_ckpt_path


def test_fit_of_a_task_trains_it(run, tmp_path):
    config = {
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": "runs/task"},
        "model": str(CONF / "task" / "digits.yaml"),
        "data": str(CONF / "data" / "digits.yaml"),
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    run("fit", "--config", "train.yaml", *QUIET)
    weights = _weights("runs/task/checkpoints/last.ckpt")
    assert weights
    given = "--task.init_args.checkpoint=runs/task/checkpoints/last.ckpt"
    out = run("fit", *RUN, *QUIET, given, "--evidence.enabled=false")
    assert "original: the weights of runs/task/checkpoints/last.ckpt" in out


def test_console_shows_what_is_done_and_no_adverts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "erasus_pl", "fit", *RUN, "--evidence.retrained=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for doing in ("training the original, epoch 1/1", "unlearning, epoch 1/1", "retraining 1/1"):
        assert doing in done.stdout
    assert done.stderr == ""


def test_progress_is_drawn_ten_times_a_second_and_at_the_end(monkeypatch):
    drawn = []
    clock = iter([0.2, 0.21, 0.35, 0.36])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.RichProgressBar.on_train_batch_end",
        lambda *args: drawn.append(args[-1]),
    )

    class Trainer:
        is_last_batch = False

    bar, trainer = Progress("unlearning"), Trainer()
    for batch in range(4):
        trainer.is_last_batch = batch == 3
        bar.on_train_batch_end(trainer, None, None, None, batch)
    assert drawn == [0, 2, 3]


def test_a_progress_bar_of_the_users_own_replaces_ours(run):
    run("fit", *RUN, "--evidence.enabled=false", "--trainer.callbacks+=TQDMProgressBar")


def test_validation_table_fits_a_narrow_terminal(finished, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert Console().width == 40
    lines = run("validate", *SAVED).splitlines()
    assert any(line.startswith("holdout") for line in lines)
    assert max(map(len, lines)) <= 40


@pytest.mark.parametrize(
    ("width", "given", "threads"), [(8, None, 1), (8, "3", 2), (100_000, None, 2)]
)
def test_a_small_network_is_computed_on_one_thread(width, given, threads, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    torch.set_num_threads(2)
    try:
        cli._spare_threads(Task.from_module(torch.nn.Linear(4, width)))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
