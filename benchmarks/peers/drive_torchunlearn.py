"""Drive the package `torchunlearn` on plain problems, through its `Unlearn`."""

from collections.abc import Callable

import _absent
from _common import Job, Problem, loader, serve
from torch import nn

_absent.install()


def prepare(problem: Problem, job: Job) -> Callable[[], nn.Module]:
    """The call is the method of `Unlearn`; the two that train take epochs and a learning rate."""
    from torchunlearn import RobModel
    from torchunlearn.unlearn.easymode import Unlearn

    loaders = {"Retain": loader(problem, "retain"), "Forget": loader(problem, "forget")}
    network = RobModel(problem.network, problem.about["classes"])
    side = Unlearn(network, None, loaders, {"Test": loader(problem, "test", False)}, save_path=None)
    trains = job.method in ("finetune", "neggrad")
    arguments = {"epoch": job.epochs, "lr": 0.01} if trains else {}
    return lambda: getattr(side, job.method)(**arguments, **job.options).model


if __name__ == "__main__":
    serve(prepare)
