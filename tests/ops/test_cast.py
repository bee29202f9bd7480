"""Rounding and turning by integers do what XLA's own do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops.cast import cast, turned

RNG = np.random.default_rng(0)
ODD = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-45, 1.00390625, 1.01171875])


@pytest.mark.parametrize('back', [False, True])
def test_cast_is_astype(back):
  """Ties go to even, infinities and NaN stay, and both ways round and back."""
  x = np.concatenate([ODD, RNG.normal(size=4096) * 10.0 ** RNG.integers(-30, 30, 4096)])
  x = jnp.asarray(x, jnp.bfloat16 if back else jnp.float32)
  to = jnp.float32 if back else jnp.bfloat16
  got, right = jax.jit(lambda x: cast(x, to))(x), x.astype(to)
  assert got.dtype == to
  np.testing.assert_array_equal(np.float32(got), np.float32(right))
  assert not np.array_equal(np.float32(x[10:]), np.float32(right[10:])) or back  # it does round


def test_the_gradient_of_a_cast_is_a_cast():
  x = jnp.asarray(RNG.normal(size=64), jnp.float32)
  got = jax.grad(lambda x: jnp.sum(cast(x, jnp.bfloat16).astype(jnp.float32) * x))(x)
  right = jax.grad(lambda x: jnp.sum(x.astype(jnp.bfloat16).astype(jnp.float32) * x))(x)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, right, rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(6, 4), (5, 3), (1, 7), (2, 1)])
def test_turned_is_transposed(dtype, shape):
  x = jnp.asarray(RNG.normal(size=shape), dtype)
  np.testing.assert_array_equal(np.float32(jax.jit(turned)(x)), np.float32(x).T)
