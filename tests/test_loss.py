"""Cross-entropy as a sum and a count; padding is not there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference
from transformer import loss
from transformer.objective import split


def cross_entropy(*batch: np.ndarray) -> tuple:
  return loss.sums(*batch)[1]


RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(2, 4, 7))).astype(np.float32)
TARGETS = np.array([[3, 6, 0, -1], [2, -1, -1, 5]])
WEIGHTS = (TARGETS >= 0).astype(np.float32)


def test_against_a_loop():
  total, count = cross_entropy(LOGITS, TARGETS, WEIGHTS)
  rows = [reference.cross_entropy(*row) for row in zip(LOGITS, TARGETS, strict=True)]
  assert count == sum(n for _, n in rows) == 5
  assert total == pytest.approx(sum(t for t, _ in rows), rel=1e-6)
  wrong, _ = cross_entropy(LOGITS, np.maximum(TARGETS - 1, 0), WEIGHTS)
  assert abs(wrong - total) > 0.1  # negative control


def test_by_hand():
  """Equal logits over V = 4: log 4 a token. Logits (log 3, 0): −log ¾ for 0, −log ¼ for 1."""
  total, count = cross_entropy(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 3]]), jnp.ones((1, 3)))
  assert (float(total), float(count)) == (pytest.approx(3 * np.log(4)), 3)
  logits = jnp.log(jnp.array([[[3.0, 1.0], [3.0, 1.0]]]))
  total, _ = cross_entropy(logits, jnp.array([[0, 1]]), jnp.ones((1, 2)))
  assert float(total) == pytest.approx(-np.log(3 / 4) - np.log(1 / 4))


def test_padding_has_neither_loss_nor_gradient():
  wild = np.where(WEIGHTS[..., None] > 0, LOGITS, 1e6 * LOGITS)
  same = cross_entropy(wild, TARGETS, WEIGHTS)
  assert np.array_equal(same, cross_entropy(LOGITS, TARGETS, WEIGHTS))
  grad = jax.grad(lambda x: cross_entropy(x, TARGETS, WEIGHTS)[0])(LOGITS)
  assert np.array_equal(np.any(grad != 0, axis=-1), WEIGHTS > 0)
  exact = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True) - np.eye(7)[TARGETS]
  np.testing.assert_allclose(grad, exact * WEIGHTS[..., None], atol=1e-6)


OBJECTIVES = [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.3, 0.2)]


@pytest.mark.parametrize(('label_smoothing', 'z_loss'), OBJECTIVES)
def test_objective_against_a_loop(label_smoothing, z_loss):
  got, (nats, count) = loss.sums(LOGITS, TARGETS, WEIGHTS, label_smoothing, z_loss)
  rows = list(zip(LOGITS, TARGETS, strict=True))
  expected = sum(reference.objective(*row, label_smoothing, z_loss) for row in rows)
  assert got == pytest.approx(expected, rel=1e-6)
  assert (nats, count) == cross_entropy(LOGITS, TARGETS, WEIGHTS)  # whatever is minimised
  wrong = sum(reference.objective(*row, label_smoothing + 0.01, z_loss + 0.01) for row in rows)
  assert abs(wrong - got) > 0.01  # negative control


def test_objective_by_hand():
  """V = 2, logits (log 3, 0): p = ¾, ¼ and Z = 4.

  Smoothing .2 of target 0 wants (.9, .1): −.9 log ¾ − .1 log ¼. z-loss .5 adds .5 log² 4.
  """
  logits, target, one = jnp.log(jnp.array([[[3.0, 1.0]]])), jnp.array([[0]]), jnp.ones((1, 1))
  got, (nats, _) = loss.sums(logits, target, one, 0.2, 0.5)
  smooth = -0.9 * np.log(3 / 4) - 0.1 * np.log(1 / 4)
  assert float(got) == pytest.approx(smooth + 0.5 * np.log(4) ** 2)
  assert float(nats) == pytest.approx(-np.log(3 / 4))


@pytest.mark.parametrize(('label_smoothing', 'z_loss'), OBJECTIVES)
def test_gradient_of_the_objective_against_finite_differences(label_smoothing, z_loss):
  grad = jax.grad(lambda x: loss.sums(x, TARGETS, WEIGHTS, label_smoothing, z_loss)[0])(LOGITS)
  direction = np.random.default_rng(1).normal(size=LOGITS.shape)

  def total(amount: float) -> float:
    rows = zip(np.float64(LOGITS) + amount * direction, TARGETS, strict=True)
    return sum(reference.objective(*row, label_smoothing, z_loss) for row in rows)

  assert np.sum(grad * direction) == pytest.approx((total(1e-5) - total(-1e-5)) / 2e-5, rel=1e-5)
  assert np.array_equal(np.any(grad != 0, axis=-1), WEIGHTS > 0)  # none on padding


def test_what_is_off_costs_nothing():
  """Without smoothing no pass over the logits is added; a z-loss of 0 changes no bit."""

  def reductions(label_smoothing: float) -> int:
    jaxpr = jax.make_jaxpr(lambda x: loss.sums(x, TARGETS, WEIGHTS, label_smoothing, 0.0))(LOGITS)
    return str(jaxpr).count('reduce_sum')

  assert reductions(0.1) == reductions(0.0) + 1
  plain, with_zero = (
    jax.grad(lambda x, z=z: loss.sums(x, TARGETS, WEIGHTS, 0.0, *z)[0])(LOGITS)
    for z in ((), (jnp.float32(0),))
  )
  assert battery.same_bits({'': plain}, {'': with_zero})


def test_large_logits_and_low_precision():
  total, _ = cross_entropy(1e4 * LOGITS, TARGETS, WEIGHTS)
  assert np.isfinite(total)
  low = jnp.asarray(LOGITS, jnp.bfloat16)
  total, count = cross_entropy(low, TARGETS, WEIGHTS)
  exact, _ = cross_entropy(np.asarray(low, np.float32), TARGETS, WEIGHTS)
  assert total.dtype == count.dtype == jnp.float32 and total == exact


def test_split_by_hand():
  tokens = jnp.array([[5, 0, 7, 8, 0], [0, 3, 4, -1, -1], [-1, -1, -1, -1, -1]])
  inputs, targets, weights, segments = split(tokens)
  assert inputs.tolist() == [[5, 0, 7, 8], [0, 3, 4, -1], [-1, -1, -1, -1]]
  assert targets.tolist() == [[0, 7, 8, 0], [3, 4, -1, -1], [-1, -1, -1, -1]]
  assert weights.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
  # A document begins at each 0 of the text.
  assert segments.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]


def test_tiny_batches_have_what_tests_want_of_them():
  config = battery.tiny()
  _, _, weights, segments = split(battery.tokens(config, padding=True))
  assert weights.sum(axis=1).tolist() == [8, 3, 1, 8, 8, 8, 0, 0]
  assert len(np.unique(segments[0])) > 1
