"""Tasks: what models are for."""

from erasus_pl.tasks.base import Task
from erasus_pl.tasks.causal_lm import CausalLMTask
from erasus_pl.tasks.classification import ClassificationTask

__all__ = ["CausalLMTask", "ClassificationTask", "Task"]
