"""Mechanisms that any strategy can take: callbacks that change how it acts on the weights."""

from erasus_pl.mechanisms.gradient_rectified import GradientRectified
from erasus_pl.mechanisms.gradient_rule import GradientRule
from erasus_pl.mechanisms.low_rank import LowRank
from erasus_pl.mechanisms.nash_bargaining import NashBargaining
from erasus_pl.mechanisms.sharpness_aware import SharpnessAware
from erasus_pl.mechanisms.sparse_update import SparseUpdate

__all__ = [
    "GradientRectified",
    "GradientRule",
    "LowRank",
    "NashBargaining",
    "SharpnessAware",
    "SparseUpdate",
]
