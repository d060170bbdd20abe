"""Take a finished run's model back into Python."""

from pathlib import Path

from erasus_pl.tasks import Task

__all__ = ["load"]


def load(run_dir: str | Path, checkpoint: str = "checkpoints/last.ckpt") -> Task:
    """Rebuild the task of a run from its config.yaml, with the weights of its checkpoint.

    Args:
        run_dir: folder that `fit` wrote, such as `runs/quickstart`. Its config.yaml names the
            classes that are built, so load only runs you trust.
        checkpoint: path of the checkpoint in that folder; read with `weights_only=True`.

    Returns:
        The task in eval mode; `load(run_dir).network` is the plain network.

    Raises:
        FileNotFoundError: the folder has no config.yaml or no such checkpoint.
        ValueError: the checkpoint is damaged or of another network.
    """
    import yaml
    from jsonargparse import ArgumentParser

    folder = Path(run_dir)
    path = folder / "config.yaml"
    if not path.is_file():
        msg = (
            f"`run_dir`: {str(folder)!r} has no config.yaml; give the folder that `fit` wrote, "
            "such as runs/quickstart"
        )
        raise FileNotFoundError(msg)
    config = yaml.safe_load(path.read_text("utf-8"))
    recipe = config.get("task") or config["model"]["init_args"].get("task") or config["model"]
    recipe.get("init_args", {}).pop("checkpoint", None)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Task, "task")
    task: Task = parser.instantiate(parser.parse_object({"task": recipe})).task
    task.load_weights(folder / checkpoint)
    return task.eval()
