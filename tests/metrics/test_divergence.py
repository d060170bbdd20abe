import doctest

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from erasus_pl.metrics import KLToReference, divergence


def test_examples_in_the_docstrings():
    result = doctest.testmod(divergence)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5)])
def test_is_scipys_and_does_not_depend_on_the_batches(shape):
    generator = torch.Generator().manual_seed(0)
    logits, reference = (3 * torch.randn(shape, generator=generator) for _ in range(2))
    expected = rel_entr(softmax(reference.numpy(), -1), softmax(logits.numpy(), -1)).sum(-1).mean()
    metric = KLToReference()
    for part in (slice(0, 1), slice(1, None)):
        metric.update(logits[part], reference[part])
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    assert metric.compute().item() != pytest.approx(expected / shape[-1], rel=0.5)


def test_is_zero_for_the_reference_itself_and_shift_invariant():
    logits = torch.tensor([[50.0, -50.0, 0.0], [1.0, 2.0, 3.0]])
    metric = KLToReference()
    metric.update(logits + 7, logits)
    assert metric.compute().item() == pytest.approx(0, abs=1e-6)


def test_merges_like_one_pass():
    generator = torch.Generator().manual_seed(1)
    logits, reference = (torch.randn(6, 4, generator=generator) for _ in range(2))
    whole, first, second = KLToReference(), KLToReference(), KLToReference()
    whole.update(logits, reference)
    first.update(logits[:2], reference[:2])
    second.update(logits[2:], reference[2:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute())


def test_says_when_nothing_was_seen_or_shapes_differ():
    metric = KLToReference()
    assert np.isnan(metric.compute().item())
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        metric.update(torch.zeros(2, 3), torch.zeros(2, 4))
