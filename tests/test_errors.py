"""What a user gets wrong ends as one line that names field, value and remedy, and a status."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser

from erasus_pl import _parsing
from erasus_pl.__main__ import main
from erasus_pl._words import did_you_mean

ROOT = Path(__file__).parents[1]
RUN = ROOT / "conf" / "quickstart.yaml"
QUICK = ["--trainer.enable_progress_bar=false", "--task.init_args.epochs=1"]
QUICK += [f"--model={RUN.parent}/strategy/gradient_ascent.yaml", "--trainer.max_epochs=5"]
QUICK += ["--selector=null"]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a verb in an empty folder; it must fail with one line, which is returned."""
    monkeypatch.chdir(tmp_path)

    def run(*args, config=RUN, verb="fit"):
        given = [verb, "--config", str(config), *QUICK] if config else [verb]
        capsys.readouterr()
        assert main([*given, *map(str, args)]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        said = [line for line in errors if line.startswith("error: ")]
        assert len(said) == 1, errors
        assert not any("Traceback" in line or line.startswith("usage:") for line in errors)
        assert len(said[0]) < 500
        return said[0].removeprefix("error: ")

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    where = [f"--trainer.default_root_dir={folder}/runs/quickstart"]
    where += [f"--evidence.cache={folder}/runs/cache", "--evidence.enabled=false"]
    assert main(["fit", "--config", str(RUN), *QUICK, *where]) == 0
    return folder


@pytest.fixture
def trained(finished, tmp_path):
    """The folder of a finished run, a copy of its own."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "quickstart"


def test_no_verb_and_an_unknown_one(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: a verb is missing, choose one of fit,")
    assert main(["fti"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean 'fit'?\n")
    assert main(["--confg", "x.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown verb '--confg'")


def test_a_missing_run_file_is_named(refused):
    assert "there is no file" in (line := refused(config="nope.yaml"))
    assert "nope.yaml" in line
    assert "a value is missing after --config" in refused("--config", config=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: {max_epochs: 3\nmodel: [", "line 2, column 6"),
        ("- 1\n- 2\n", "holds a list"),
        ("", "is empty"),
        ("max_epochs\n", "holds a str"),
        ("a: \x00", "cannot be read"),
    ],
)
def test_a_broken_run_file_is_named_with_the_place(text, said, refused, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    line = refused(config=path)
    assert said in line
    assert "broken.yaml" in line


def test_a_broken_or_missing_part_is_named(refused, tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text("model: part.yaml\n")
    assert refused("--config", run).startswith("`model`: there is no file 'part.yaml'")
    (tmp_path / "part.yaml").write_text("class_path: [\n")
    line = refused("--config", run)
    assert line.startswith("`model`: 'part.yaml' is not YAML: ")
    assert "line 2" in line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--model", "GradientAscnt"],
            "`model`: there is no class 'GradientAscnt'; did you mean 'Grad",
        ),
        (["--model", "erasus_pl.strategies.GradientAscnt"], "did you mean 'GradientAscent'?"),
        (["--model", "erasus_plx.GradientAscent"], "No module named 'erasus_plx'"),
        (
            ["--task", "ClassificationTsk"],
            "`task`: there is no class 'ClassificationTsk'; did you ",
        ),
        (["--data", "DigitsDataModul"], "did you mean 'DigitsDataModule'?"),
        (["--data", "Digits"], "did you mean 'DigitsDataModule'?"),
        (["--request", "ForgetClas"], "`request`: there is no class 'ForgetClas'; did you "),
        (["--selector", "Randm"], "`selector`: there is no class 'Randm'; did you mean 'Random'?"),
        (["--model.optimizer", "SDG"], "`model.optimizer`: there is no class 'SDG'; did you "),
        (["--trainer.logger", "MLFlowLoger"], "did you mean 'MLFlowLogger'?"),
        (
            ["--trainer.callbacks+=Randm"],
            "`trainer.callbacks`: there is no class 'Randm'; did you ",
        ),
        (["--model", "Xyzzy"], "`python -m erasus_pl catalogue` lists what there is"),
    ],
)
def test_an_unknown_class_gets_the_nearest(given, said, refused):
    assert said in refused(*given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--trainer.max_epochss=3"],
            "option '--trainer.max_epochss'; did you mean '--trainer.max_",
        ),
        (["--trianer.max_epochs", "3"], "did you mean '--trainer.max_epochs'?"),
        (["--evidence.retraind", "1"], "did you mean '--evidence.retrained'?"),
        (["--data.batch_siz", "3"], "`data.batch_siz`: unknown option of DigitsDataModule; did"),
        (["--data.init_args.batch_siz", "3"], "did you mean 'batch_size'?"),
        (["--request.init_args.classs", "3"], "option of ForgetClass; did you mean 'classes'?"),
        (["--model.init_args.optimizer.init_args.lrr", "3"], "`model.optimizer.lrr`: "),
        (["--model.init_args.beta", "3"], "option of GradientAscent; it takes optimizer"),
        (["stray"], "'stray' belongs to no option"),
        (["--model"], "a value is missing after --model"),
    ],
)
def test_an_unknown_option_gets_the_nearest(given, said, refused):
    assert said in refused(*given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer:\n  max_epoch: 3\n", "did you mean '--trainer.max_epochs'?"),
        ("trianer:\n  max_epochs: 3\n", "did you mean '--trainer.max_epochs'?"),
        (
            "task:\n  init_args:\n    network:\n      class_path: erasus_pl.networks.MLP\n"
            "      init_args: {inputs: 64, hiden: [3]}\n",
            "unknown option of MLP; did you mean 'hidden'?",
        ),
        (
            "trainer:\n  callbacks:\n  - class_path: erasus_pl.selectors.Random\n"
            "    init_args: {fracton: 0.1}\n",
            "`trainer.callbacks.fracton`: unknown option of Random; did you mean 'fraction'?",
        ),
    ],
)
def test_an_unknown_key_of_a_run_file_gets_the_nearest(text, said, refused, tmp_path):
    path = tmp_path / "over.yaml"
    path.write_text(text)
    assert said in refused("--config", path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--trainer.max_epochs", "x"], "`trainer.max_epochs` must be int or null, got 'x'"),
        (["--data.batch_size", "x"], "`data.batch_size` must be int, got 'x'"),
        (["--data.batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["--seed_everything", "x"], "`seed_everything` must be bool or int, got 'x'"),
        (["--trainer.precision", "17"], "`trainer.precision` must be 64, 32, 16 or"),
        (["--trainer.max_epochs", "-5"], "`trainer`: `max_epochs` must be a non-negative integer"),
        (["--trainer.accelerator", "gpux"], "`trainer`: You selected an invalid accelerator name"),
        (["--evidence.retrained", "-1"], "`evidence.retrained` must be at least 0, got -1"),
        (["--selector", "Random"], "give exactly one of `fraction` and `k`, got fraction=None"),
        (["--selector", "Random", "--selector.fraction", "7"], "`fraction` must be in (0, 1], got"),
        (["--request.init_args.classes", "[77]"], "got 77; valid classes: 0, 1, 2"),
        (["--request.init_args.classes", "[]"], "`classes` must name at least one value"),
        (["--request", "ForgetIndices", "--request.indices", "[5000]"], "5000"),
        (["--evidence.retrained", "x"], "`evidence.retrained` must be int, got 'x'"),
        (["--task", "Task"], "`task.network` is missing"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_can(given, said, refused):
    assert said in refused(*given)


@pytest.mark.parametrize("section", ["model", "data", "task", "request"])
def test_a_missing_section_is_named(section, refused, tmp_path):
    lines = RUN.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"{section}:")]
    path = tmp_path / "run.yaml"
    path.write_text("\n".join(kept).replace(": ", f": {RUN.parent}/", 0))
    parts = {"task": "task/digits", "request": "request/class", "data": "data/digits"}
    parts["model"] = "strategy/gradient_ascent"
    given = [f"--{k}={RUN.parent / v}.yaml" for k, v in parts.items() if k != section]
    path.write_text("seed_everything: 0\n")
    quick = [*given, "--trainer.enable_progress_bar=false"]
    line = refused("--config", path, *quick, config=None)
    assert f"`{section}`" in line


def test_one_shot_needs_one_epoch_and_is_refused_before_anything_is_trained(refused, tmp_path):
    line = refused("--model", "SSD", "--trainer.max_epochs", "3")
    assert "set trainer.max_epochs: 1" in line
    assert not (tmp_path / "runs" / "cache").exists()


def test_a_task_that_lacks_what_a_strategy_requires(refused, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text(
        "task:\n  class_path: erasus_pl.tasks.Task\n  init_args:\n"
        "    network: {class_path: erasus_pl.networks.MLP, init_args: {inputs: 64, outputs: 10}}\n"
        "    loss: {class_path: torch.nn.CrossEntropyLoss}\n"
    )
    line = refused("--config", over, "--model", "SCRUB")
    assert "SCRUB needs a task with ['divergence']" in line
    assert "strategies that fit: " in line
    assert "GradientAscent" in line


def test_data_that_does_not_fit_the_network(refused):
    line = refused("--task.init_args.network.init_args.inputs", "63")
    assert line.startswith("`data`: batches of {'input': (64, 1, 8, 8)")


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict", "evaluate"])
def test_a_checkpoint_that_is_not_there(verb, refused):
    last = os.path.join("runs", "quickstart", "checkpoints", "last.ckpt")  # noqa: PTH118
    assert f"there is no checkpoint '{last}'" in refused("--ckpt_path", "last", verb=verb)
    assert "there is no checkpoint 'nope.ckpt'" in refused("--ckpt_path", "nope.ckpt", verb=verb)


def test_nothing_to_resume(refused):
    assert "there is no checkpoint" in refused("--resume")


def test_resume_and_another_checkpoint(refused):
    assert "give one of the two" in refused("--resume", "--ckpt_path", "other.ckpt")


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("it_ran",)


def _hostile_pickle(path):
    with path.open("wb") as file:
        pickle.dump(_Hostile(), file)


def _hostile_zip(path):
    torch.save({"state_dict": {}, "loops": {}, "callbacks": _Hostile()}, path)


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("make", [_hostile_pickle, _hostile_zip])
@pytest.mark.parametrize("field", ["--ckpt_path", "--task.init_args.checkpoint"])
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_hostile_checkpoint_is_refused_and_its_code_is_not_run(
    make, field, verb, refused, tmp_path
):
    path = tmp_path / "hostile.ckpt"
    make(path)
    line = refused(field, path, verb=verb)
    assert "could run code" in line
    assert "hostile.ckpt" in line
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("make", [_hostile_pickle, _hostile_zip, _empty])
def test_a_damaged_or_hostile_kept_model(make, refused, trained, tmp_path):
    (kept,) = (tmp_path / "runs" / "cache").glob("original-*.ckpt")
    make(kept)
    line = refused()
    assert kept.name in line
    assert "delete it to train that model again" in line
    assert not (tmp_path / "it_ran").exists()


def test_the_hostile_pickle_would_run_if_it_were_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _hostile_pickle(tmp_path / "hostile.ckpt")
    with (tmp_path / "hostile.ckpt").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("size", [0, 100, -10])
@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_truncated_checkpoint(size, verb, refused, trained, tmp_path):
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    path = tmp_path / "short.ckpt"
    path.write_bytes(whole[:size])
    assert "'short.ckpt' is truncated" in refused("--ckpt_path", "short.ckpt", verb=verb)


def test_weights_alone_are_no_checkpoint(refused, tmp_path):
    torch.save({"layers.1.weight": torch.zeros(2)}, tmp_path / "weights.ckpt")
    assert "is no checkpoint of a run" in refused("--ckpt_path", "weights.ckpt")
    line = refused("--task.init_args.checkpoint", "weights.ckpt")
    assert "is of another network" in line


@pytest.mark.parametrize("verb", ["fit", "validate", "evaluate"])
def test_a_checkpoint_of_another_task(verb, refused, trained):
    line = refused("--ckpt_path=last", "--task.init_args.network.init_args.hidden=[32]", verb=verb)
    assert "`ckpt_path`: the checkpoint is of another model" in line
    assert "shape [64, 64] there and [32, 64] here" in line


def test_a_checkpoint_of_another_request(refused, trained):
    line = refused("--resume", "--request.init_args.classes=[4]")
    assert "classes was [3], is now [4]" in line


def test_a_checkpoint_of_another_strategy(refused, trained):
    line = refused("--resume", "--model", "NegGradPlus")
    assert "GradientAscent" in line
    assert "NegGradPlus" in line


def test_evaluate_of_a_task_says_what_to_use(refused, trained, tmp_path):
    part = RUN.parent / "task" / "digits.yaml"
    line = refused("--model", part, "--ckpt_path", "last", verb="evaluate")
    assert "use validate or test for a task" in line


_IMAGES = {
    "x": np.zeros((40, 8, 8), dtype=np.uint8),
    "y": np.arange(40) % 10,
    "u": np.zeros((20, 8, 8), dtype=np.uint8),
    "v": np.arange(20) % 10,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": np.arange(39)}, "39"),
        ({"x": np.zeros((40, 8), dtype=np.uint8)}, "(40, 8)"),
        ({"x": np.zeros((40, 8, 8))}, "must be uint8 with values 0 to 255, got float64"),
        ({"y": np.linspace(0, 1, 40)}, "'y'"),
        ({"x": np.array([{}] * 40)}, "holds Python objects"),
    ],
)
def test_an_image_file_of_wrong_shape_or_dtype(changes, said, refused, tmp_path):
    np.savez(tmp_path / "images.npz", **{**_IMAGES, **changes})
    given = ["--data.path", "images.npz", "--data.train=[x,y]", "--data.held_out=[u,v]"]
    assert said in refused("--data", "ArrayDataModule", *given)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,b,y\n1,nan,0\n" + "2,3,1\n4,5,0\n" * 4, "'b' is missing or infinite in 1"),
        ("a,b,y\n1,2\n", "line 2 of 'rows.csv' has 2 cells, its header 3"),
        ("a,b,y\n", "must have a header and rows"),
        ("a,b,c\n1,2,0\n2,3,1\n", "there is no 'y'"),
    ],
)
def test_a_table_with_gaps_or_without_the_target(rows, said, refused, tmp_path):
    (tmp_path / "rows.csv").write_text(rows)
    given = ["--data.path", "rows.csv", "--data.target", "y"]
    assert said in refused("--data", "TabularDataModule", *given)


def test_a_data_file_that_is_not_there(refused):
    line = refused("--data", "ArrayDataModule", "--data.path", "nope.npz")
    assert "nope.npz" in line


def test_a_real_process_ends_with_the_line_and_the_status(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "erasus_pl", "fit", "--config", str(RUN), "--model", "Scrb"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("error: `model`: there is no class 'Scrb'; did you mean 'SCRUB'?\n")


def test_what_is_not_the_users_fault_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(self, parser, args):
        raise ValueError("a mistake of ours, seen from elsewhere")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("erasus_pl.cli.ErasusCLI.parse_arguments", broken)
    with pytest.raises(ValueError, match="seen from elsewhere"):
        main(["fit"])


def test_the_hook_into_the_parser_is_there():
    from jsonargparse import _typehints

    before = _typehints.discard_init_args_on_class_path_change
    with _parsing.clean_class_changes():
        assert _typehints.discard_init_args_on_class_path_change is not before
    assert _typehints.discard_init_args_on_class_path_change is before


def test_condense_of_what_it_does_not_know_is_that_on_one_line():
    assert _parsing.condense("some new\n  message") == "some new message"


@pytest.mark.parametrize(
    ("given", "choices", "hint"),
    [
        ("fti", ["fit", "test"], "; did you mean 'fit'?"),
        ("scrub", ["SCRUB", "SSD"], "; did you mean 'SCRUB'?"),
        ("Digits", ["DigitsDataModule", "Array"], "; did you mean 'DigitsDataModule'?"),
        ("zzz", ["fit"], ""),
    ],
)
def test_did_you_mean(given, choices, hint):
    assert did_you_mean(given, choices) == hint


def test_parts_use_the_same_parser():
    assert issubclass(_parsing.Parser, LightningArgumentParser)
