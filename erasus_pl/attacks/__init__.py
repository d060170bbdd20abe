"""Attacks: what someone who holds the model can still find out about the forgotten data."""

from __future__ import annotations

from erasus_pl.attacks.membership import (
    MembershipResult,
    Roc,
    auc,
    balanced_accuracy,
    membership_attack,
    roc,
    tpr_at_fpr,
)

__all__ = [
    "MembershipResult",
    "Roc",
    "auc",
    "balanced_accuracy",
    "membership_attack",
    "roc",
    "tpr_at_fpr",
]
