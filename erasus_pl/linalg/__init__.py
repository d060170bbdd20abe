"""Shared numerics: modules and tensors in, tensors out; no Lightning.

Every function takes the loss as ``loss_fn(batch) -> (B,)``, computed with the given module. For a
task that is ``lambda batch: task.per_sample_loss(task(batch), batch)``.
"""

from erasus_pl.linalg.arnoldi import arnoldi, low_rank_solve
from erasus_pl.linalg.cg import CurvatureError, Solution, conjugate_gradient
from erasus_pl.linalg.dampening import dampen, pooled_importance
from erasus_pl.linalg.datainf import datainf_solve
from erasus_pl.linalg.dense import dense_matrix, dense_solve
from erasus_pl.linalg.ekfac import ekfac_blocks, ekfac_solve
from erasus_pl.linalg.fisher import diagonal_fisher
from erasus_pl.linalg.hvp import (
    gauss_newton_vector_product,
    hessian_vector_product,
    mean_gradient,
)
from erasus_pl.linalg.lissa import largest_eigenvalue, lissa
from erasus_pl.linalg.low_rank import inverse_fisher_product
from erasus_pl.linalg.masks import importance_ratio, top_fraction
from erasus_pl.linalg.parameters import flatten, trainable_parameters, unflatten
from erasus_pl.linalg.per_sample import (
    PerSampleGradients,
    gradient_dots,
    gradient_norms,
    per_sample_gradients,
)
from erasus_pl.linalg.two_sided import ascent, nash_weights, rectify, with_gradient

__all__ = [
    "CurvatureError",
    "PerSampleGradients",
    "Solution",
    "arnoldi",
    "ascent",
    "conjugate_gradient",
    "dampen",
    "datainf_solve",
    "dense_matrix",
    "dense_solve",
    "diagonal_fisher",
    "ekfac_blocks",
    "ekfac_solve",
    "flatten",
    "gauss_newton_vector_product",
    "gradient_dots",
    "gradient_norms",
    "hessian_vector_product",
    "importance_ratio",
    "inverse_fisher_product",
    "largest_eigenvalue",
    "lissa",
    "low_rank_solve",
    "mean_gradient",
    "nash_weights",
    "per_sample_gradients",
    "pooled_importance",
    "rectify",
    "top_fraction",
    "trainable_parameters",
    "unflatten",
    "with_gradient",
]
