"""Drive the package `erasus` on plain problems, through its documented `ErasusUnlearner`."""

from collections.abc import Callable

from _common import Job, Problem, loader, serve
from erasus import ErasusUnlearner
from torch import nn


def prepare(problem: Problem, job: Job) -> Callable[[], nn.Module]:
    """The call is `fit`, without a selector: on the whole forget set."""
    forget, retain = loader(problem, "forget"), loader(problem, "retain")
    unlearner = ErasusUnlearner(
        problem.network, strategy=job.method, device="cpu", strategy_kwargs=job.options
    )
    return lambda: unlearner.fit(forget, retain, epochs=job.epochs).model


if __name__ == "__main__":
    serve(prepare)
