"""`--resume` after a kill ends in the weights, curves and report of an uninterrupted run."""

import csv
import json
import multiprocessing
import os
import signal
from pathlib import Path

import torch

from erasus_pl.__main__ import main
from erasus_pl.callbacks import RunCheckpoint

CONF = Path(__file__).parents[2] / "conf"


def _fit(folder, cache, *more, kill_after=None):
    torch.set_num_threads(1)
    if kill_after is not None:
        save = RunCheckpoint._save

        def killing(self, trainer):
            save(self, trainer)
            if trainer.global_step >= kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        RunCheckpoint._save = killing
    arguments = [
        "fit", "--config", str(CONF / "quickstart.yaml"), f"--trainer.default_root_dir={folder}",
        f"--evidence.cache={cache}", "--evidence.retrained=1", "--trainer.max_epochs=3",
        "--checkpoint.every_n_train_steps=1", "--trainer.enable_progress_bar=false", *more,
    ]  # fmt: skip
    os._exit(main(arguments))


def _run(*args, **kwargs):
    process = multiprocessing.get_context("fork").Process(target=_fit, args=args, kwargs=kwargs)
    process.start()
    process.join(300)
    return process.exitcode


def _left(folder):
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    report = json.loads((folder / "report.json").read_text())
    measures = {
        key: {m["name"]: m["value"] for m in rows if m["name"] not in ("Seconds", "Time ratio")}
        for key, rows in report["measures"].items()
    }
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in r.items() if "seconds" not in k} for r in csv.DictReader(file)]
    picked = next(v for k, v in checkpoint["callbacks"].items() if "indices" in v)
    return checkpoint, {
        "measures": measures, "rows": rows, "picked": picked["indices"].tolist(),
        "manifest": report["manifest"], "verdict": report["verdict"],
        "curves": report["curves"],
    }  # fmt: skip


def test_resume_of_a_killed_fit_is_the_uninterrupted_fit(tmp_path, capfd):
    whole, broken, cache = tmp_path / "whole", tmp_path / "broken", tmp_path / "cache"
    assert _run(whole, cache) == 0, capfd.readouterr().err
    for kill_after, resume in ((2, ()), (7, ("--resume",))):
        assert _run(broken, cache, *resume, kill_after=kill_after) == -signal.SIGKILL
        assert not (broken / "report.json").exists()
    assert _run(broken, cache, "--resume") == 0, capfd.readouterr().err
    (a, left), (b, again) = _left(whole), _left(broken)
    assert left == again
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    momenta = [c["optimizer_states"][0]["state"] for c in (a, b)]
    for i in momenta[0]:
        assert torch.equal(*(m[i]["momentum_buffer"] for m in momenta))
    status = _run(broken, cache, "--resume", "--request.init_args.classes=[4]")
    error = capfd.readouterr().err
    assert status == 2
    assert "another request" in error
    assert "[3]" in error
    assert "[4]" in error
