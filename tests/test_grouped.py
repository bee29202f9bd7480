"""Products of sorted rows: each implementation against the slow one, as a dispatcher calls it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import grouped
from transformer.ops.product import product

BLOCK = 8
BLOCKS_GE = np.array([[1, 0, 2], [0, 3, 0]])  # of two devices; the last rows are nobody's


@pytest.mark.parametrize('function', [grouped.looped, grouped.ragged])
def test_value_and_gradients_under_vmap(function):
  rng = np.random.default_rng(0)
  x_GMD, w_EDF, g_GMF = (
    np.float32(rng.normal(size=s)) for s in ((2, 4 * BLOCK, 5), (3, 5, 6), (2, 4 * BLOCK, 6))
  )
  begin_GE = BLOCK * (np.cumsum(BLOCKS_GE, axis=1) - BLOCKS_GE)
  groups = grouped.Groups(jnp.asarray(begin_GE), jnp.asarray(BLOCKS_GE))

  def all_of(function, x_GMD, w_EDF):
    def call(x_GMD, w_EDF):
      w_GEDF = jnp.broadcast_to(w_EDF, (2, *w_EDF.shape))
      return jax.vmap(lambda *own: function(*own, BLOCK, product))(x_GMD, w_GEDF, groups)

    y_GMF, back = jax.vjp(call, x_GMD, w_EDF)
    return y_GMF, *back(jnp.asarray(g_GMF))

  expected = jax.jit(functools.partial(all_of, grouped.reference))(x_GMD, w_EDF)
  got = jax.jit(functools.partial(all_of, function))(x_GMD, w_EDF)
  for ours, theirs in zip(got, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
  w_EDF[0, 0, 0] += 0.5  # negative control
  other = jax.jit(functools.partial(all_of, function))(x_GMD, w_EDF)
  assert np.max(np.abs(other[0] - expected[0])) > 1e-2
