"""The loss without logits is the loss of the logits, in value and in gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import loss
from transformer.ops import cross_entropy
from transformer.ops.cross_entropy import Unembedding

RNG = np.random.default_rng(0)
B, T, D, V = 3, 7, 6, 11
TARGETS = RNG.integers(-1, V, (B, T))
WEIGHTS = jnp.asarray(TARGETS >= 0, jnp.float32) * RNG.uniform(0.5, 2.0, (B, T)).astype('float32')
HOW = {  # bias, cap, label smoothing, weight of log² Z
  'plain': (False, 0.0, 0.0, 0.0),
  'smoothed': (False, 0.0, 0.2, 0.0),
  'all of it': (True, 1.5, 0.1, 0.3),
}


def made_of(bias: bool, cap: float, dtype: str) -> Unembedding:
  x, table = RNG.normal(size=(B, T, D)), RNG.normal(size=(V, D))
  own = jnp.asarray(RNG.normal(size=V), jnp.float32) if bias else None
  return Unembedding(jnp.asarray(x, dtype), jnp.asarray(table, jnp.float32), own, cap)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('held', [2**22, 5 * V])  # at once, and in parts of 5 rows with a rest
@pytest.mark.parametrize('name', HOW)
def test_value_and_gradients(name, held, dtype, monkeypatch):
  monkeypatch.setattr(cross_entropy, '_LOGITS', held)
  bias, cap, smoothing, z = HOW[name]
  given, targets = made_of(bias, cap, dtype), jnp.asarray(TARGETS)

  def ours(given: Unembedding) -> tuple:
    total, rest = loss.sums(given, targets, WEIGHTS, smoothing, z)
    return 0.7 * total, rest

  def plain(given: Unembedding) -> tuple:
    total, rest = loss.sums(given.logits(), targets, WEIGHTS, smoothing, z)
    return 0.7 * total, rest

  exact = given.replace(x_BTD=given.x_BTD.astype(jnp.float32))
  got = jax.jit(jax.value_and_grad(ours, has_aux=True))(given)
  right = jax.value_and_grad(plain, has_aux=True)(exact)
  rough = 2e-5 if dtype == 'float32' else 0.03
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(right), strict=True):
    size = float(jnp.max(jnp.abs(other)))
    np.testing.assert_allclose(np.float32(one), other, rtol=0, atol=rough * size)
  np.testing.assert_allclose(ours(given)[0], got[0][0], rtol=1e-5)  # without a gradient
  off = ours(given.replace(table_VD=3.0 * given.table_VD))[0]  # negative control
  assert abs(off - right[0][0]) > 1e-2 * abs(right[0][0])


def test_no_tensor_of_all_logits_is_held(monkeypatch):
  """Of 64 rows of 256 entries, 8 are there at once, forward and backward."""
  monkeypatch.setattr(cross_entropy, '_LOGITS', 8 * 256)
  x, table = jnp.ones((4, 16, 8)), jnp.ones((256, 8))
  targets, weights = jnp.ones((4, 16), int), jnp.ones((4, 16))

  def total(x: jax.Array, table: jax.Array, whole: bool) -> jax.Array:
    made_of = Unembedding(x, table, None)
    return loss.sums(made_of.logits() if whole else made_of, targets, weights)[0]

  texts = [
    str(jax.make_jaxpr(jax.grad(lambda x, t, w=w: total(x, t, w), (0, 1)))(x, table))
    for w in (False, True)
  ]
  shapes = ('[8,256]', '[64,256]', '[4,16,256]')
  assert [shape in texts[0] for shape in shapes] == [True, False, False]
  assert shapes[2] in texts[1]  # negative control
