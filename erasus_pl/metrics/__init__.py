"""Metrics that accumulate over batches; torchmetrics only, no Lightning."""

from __future__ import annotations

from erasus_pl.metrics.divergence import KLToReference

__all__ = ["KLToReference"]
