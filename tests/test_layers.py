"""Norms, noise by row, and activations left alone where there is no mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference
from transformer import spec
from transformer.layers import Norm, drop_branch, dropout, shard

KINDS = [
  *(name for name in spec.variants('model.norm') if name != 'none'),
  *('rmsnorm(epsilon=0.5)', 'layernorm(epsilon=0.5)', 'layernorm(bias=False)'),
]
X = (3 + 2 * np.random.default_rng(0).normal(size=(2, 3, 8))).astype(np.float32)


@pytest.mark.parametrize('kind', KINDS)
def test_norm_against_the_formula(kind):
  norm = Norm(kind)
  fresh = norm.init(jax.random.key(0), X)['params']
  assert all(np.all(leaf == (name == 'scale')) for name, leaf in fresh.items())
  leaves = spec.parse('model.norm', kind).leaves
  assert set(fresh) == set(leaves)
  assert ('bias' in leaves) == (kind.startswith('layernorm') and 'bias=False' not in kind)
  weights = battery.jiggle(fresh)
  exact = {name: np.float64(leaf) for name, leaf in weights.items()}
  expected = np.stack([reference.norm(exact, kind, np.float64(row)) for row in X])
  np.testing.assert_allclose(norm.apply({'params': weights}, X), expected, atol=2e-6)
  for name in weights:
    poked = norm.apply({'params': battery.poke(weights, name)}, X)
    assert np.max(np.abs(poked - expected)) > 1e-2


def test_norms_by_hand():
  """x = (1, 7): mean square 25, so rmsnorm gives (.2, 1.4); mean 4, deviation 3: (−1, 1)."""
  x = jnp.array([[[1.0, 7.0]]])
  for kind, expected in (('rmsnorm(epsilon=0)', [0.2, 1.4]), ('layernorm(epsilon=0)', [-1, 1])):
    norm = Norm(kind)
    got = norm.apply(norm.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(np.ravel(got), expected, rtol=1e-6)


def test_no_norm_is_x_itself():
  x = jnp.asarray(X)
  assert Norm('none').init(jax.random.key(0), x) == {}
  assert Norm('none').apply({}, x) is x


@pytest.mark.parametrize('kind', KINDS)
def test_norm_is_computed_in_float32(kind):
  """Squares of 300 would overflow float16 and lose all in bfloat16; the type returned is x's."""
  norm = Norm(kind)
  x = jnp.asarray(100 * X, jnp.bfloat16)
  weights = norm.init(jax.random.key(0), x)['params']
  got = norm.apply({'params': weights}, x)
  assert got.dtype == jnp.bfloat16
  exact = {name: np.float64(leaf) for name, leaf in weights.items()}
  expected = np.stack([reference.norm(exact, kind, row) for row in np.asarray(x, np.float64)])
  np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.01)


def keys(rows: int, first: int = 0) -> jax.Array:
  return jax.vmap(lambda r: jax.random.fold_in(jax.random.key(0), r))(jnp.arange(first, rows))


class TestDropout:
  x = jnp.ones((4, 64, 64))

  def test_share_and_scale(self):
    y = np.asarray(dropout(self.x, keys(4), 0.2, site=0))
    np.testing.assert_allclose(np.unique(y), [0, 1.25])
    # 16384 draws: a deviation of the share is √(.2 · .8 / 16384) = .003
    assert np.mean(y == 0) == pytest.approx(0.2, abs=0.015)

  def test_evaluating_and_rate_0_change_nothing(self):
    assert dropout(self.x, None, 0.2, site=0) is self.x
    assert dropout(self.x, keys(4), 0.0, site=0) is self.x

  def test_noise_belongs_to_the_row_and_the_site(self):
    y = np.asarray(dropout(self.x, keys(4), 0.2, site=0))
    later = np.asarray(dropout(self.x[2:], keys(4, first=2), 0.2, site=0))
    assert np.array_equal(later, y[2:])  # rows 2 and 3 wherever they lie
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(y, dropout(self.x, keys(4), 0.2, site=1))

  def test_type_is_kept(self):
    assert dropout(self.x.astype(jnp.bfloat16), keys(4), 0.2, site=0).dtype == jnp.bfloat16


class TestStochasticDepth:
  x = jnp.ones((4096, 1, 2))

  def test_share_and_scale(self):
    """Whole rows are zeroed, and the rest is scaled to keep the mean."""
    y = np.asarray(drop_branch(self.x, keys(4096), 0.2, site=3))
    np.testing.assert_allclose(np.unique(y), [0, 1.25])
    assert np.all(y == y[:, :1, :1])
    # 4096 draws: a deviation of the share is √(.2 · .8 / 4096) = .006
    assert np.mean(y == 0) == pytest.approx(0.2, abs=0.025)

  def test_evaluating_changes_nothing_and_rate_0_no_value(self):
    assert drop_branch(self.x, None, 0.2, site=3) is self.x
    assert np.array_equal(drop_branch(self.x, keys(4096), 0.0, site=3), self.x)

  def test_noise_belongs_to_the_row_and_the_site(self):
    x = self.x[:64]
    y = np.asarray(drop_branch(x, keys(64), 0.5, site=3))
    assert np.array_equal(drop_branch(x[40:], keys(64, first=40), 0.5, site=3), y[40:])
    assert not np.array_equal(y, drop_branch(x, keys(64), 0.5, site=4))

  def test_a_traced_rate_and_its_own_type(self):
    x = self.x[:64].astype(jnp.bfloat16)
    traced = jax.jit(lambda rate: drop_branch(x, keys(64), rate, site=3))
    assert traced(0.5).dtype == jnp.bfloat16
    assert np.array_equal(traced(0.5), drop_branch(x, keys(64), 0.5, site=3))


def test_shard_without_a_mesh_does_nothing():
  x = jnp.ones((2, 3, 4))
  assert shard(x, 'BTD') is x
