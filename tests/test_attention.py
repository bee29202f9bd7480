"""Attention against loops over queries and keys, and what it must not see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference
from transformer.attention import Attention
from transformer.ops.attention import attention, causal_mask

B, T, N, H = 2, 6, 3, 4
D = 10
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (2 * RNG.normal(size=(3, B, T, N, H))).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3], [0, 1, 1, 1, 1, 1]])
X = RNG.normal(size=(B, T, D)).astype(np.float32)


def oracle(query, key, value, segments=SEGMENTS) -> np.ndarray:
  rows = zip(*map(np.float64, (query, key, value)), segments, strict=True)
  return np.stack([reference.attention(*row) for row in rows])


def test_against_loops_over_queries_and_keys():
  mask = causal_mask(T, jnp.asarray(SEGMENTS))
  got = attention(QUERY, KEY, VALUE, mask)
  expected = oracle(QUERY, KEY, VALUE)
  np.testing.assert_allclose(got, expected, atol=2e-6)
  wrong = oracle(QUERY, KEY, VALUE, np.zeros_like(SEGMENTS))  # negative control: one document
  assert np.max(np.abs(got - wrong)) > 0.1


def test_gradient_against_finite_differences():
  mask = causal_mask(T, jnp.asarray(SEGMENTS))
  args = (QUERY, KEY, VALUE)
  projection = RNG.normal(size=VALUE.shape)
  total = lambda *a: jnp.sum(attention(*a, mask) * projection)  # noqa: E731
  grads = jax.grad(total, argnums=(0, 1, 2))(*args)
  for i in range(3):
    direction = RNG.normal(size=VALUE.shape)
    ends = []
    for amount in (1e-5, -1e-5):
      moved = [np.float64(a) for a in args]
      moved[i] = moved[i] + amount * direction
      ends.append(np.sum(oracle(*moved) * projection))
    assert np.sum(grads[i] * direction) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_causal_mask_by_hand():
  mask = np.asarray(causal_mask(4, jnp.array([[1, 1, 2, 2]]))).astype(int)
  assert mask.tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]
  assert np.array_equal(causal_mask(4, None), np.tril(np.ones((1, 4, 4), bool)))


def test_hand_derived():
  """Scores log 3 and log 1 give weights 3/4 and 1/4; H is 4, so q·k is twice the score."""
  query = np.array([0, 1.0, 0, 0]).reshape(1, 1, 1, 4)
  key = np.array([[0, 2 * np.log(3), 0, 0], [1.0, 0, 1, 1]]).reshape(1, 2, 1, 4)
  value = np.array([[4.0, 0, 8, 0], [0.0, 4, 0, 0]]).reshape(1, 2, 1, 4)
  got = attention(*(jnp.float32(a) for a in (query, key, value)), jnp.ones((1, 1, 2), bool))
  np.testing.assert_allclose(np.ravel(got), [3, 1, 6, 0], rtol=1e-6)


def test_large_scores_and_a_masked_row_stay_finite():
  assert np.all(np.isfinite(attention(1e4 * QUERY, KEY, VALUE, causal_mask(T, None))))
  nothing = attention(QUERY, KEY, VALUE, jnp.zeros((1, T, T), bool))
  assert np.all(np.isfinite(nothing))


def test_masked_keys_have_no_gradient():
  """Not even a little: what is masked is cut, not made small."""
  mask = causal_mask(T, jnp.asarray(SEGMENTS))
  last = lambda key, value: jnp.sum(attention(QUERY, key, value, mask)[:, 4])  # noqa: E731
  for grad in jax.grad(last, argnums=(0, 1))(KEY, VALUE):
    seen = np.any(np.asarray(grad) != 0, axis=(2, 3))
    assert seen.tolist() == [[False, False, False, True, True, False],
                             [False, True, True, True, True, False]]  # fmt: skip


def test_softmax_is_float32_under_bfloat16():
  args = [jnp.asarray(a, jnp.bfloat16) for a in (QUERY, KEY, VALUE)]
  got = attention(*args, causal_mask(T, jnp.asarray(SEGMENTS)))
  assert got.dtype == jnp.bfloat16
  exact = oracle(*(np.asarray(a, np.float64) for a in args))
  np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=0.1)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('positions', ['rotary', 'rotary(base=50.0)', 'learned'])
def test_module_against_loops(positions, bias):
  module = Attention(N, H, positions, bias)
  where = np.stack([reference.positions(row) for row in SEGMENTS])
  args = jnp.asarray(X), causal_mask(T, jnp.asarray(SEGMENTS)), jnp.asarray(where)
  weights = battery.jiggle(module.init(jax.random.key(0), *args)['params'])
  apply = jax.jit(lambda w: module.apply({'params': w}, *args))
  base = {'rotary': 1e4, 'rotary(base=50.0)': 50.0, 'learned': None}[positions]
  exact = {name: np.float64(leaf) for name, leaf in weights.items()}
  rows = zip(np.float64(X), SEGMENTS, strict=True)
  expected = np.stack([reference.self_attention(exact, base, *row) for row in rows])
  np.testing.assert_allclose(apply(weights), expected, atol=3e-5)
  for name in weights:
    off = np.max(np.abs(apply(battery.poke(weights, name)) - expected))
    # Without rotation a bias of the keys adds one number to all scores of a query: softmax
    # does not see it. Everything else is seen.
    assert (off > 1e-3) == (name != 'key_bias' or base is not None), name


@pytest.mark.parametrize('width', [8, 64])
def test_scores_have_unit_variance_at_init(width):
  """x of unit variance, W of variance 1/D: q and k have unit variance, and q·k / √H too."""
  x = jnp.asarray(RNG.normal(size=(4, 32, 64)).astype(np.float32))
  module = Attention(4, width)
  where = jnp.arange(32)[None]
  weights = module.init(jax.random.key(1), x, causal_mask(32, None), where)['params']
  query = np.einsum('btd,dnh->btnh', x, weights['query'])
  key = np.einsum('btd,dnh->btnh', x, weights['key'])
  scores = np.einsum('btnh,bsnh->bnts', query, key) / width**0.5
  assert np.var(query) == pytest.approx(1, rel=0.1)
  assert np.var(scores) == pytest.approx(1, rel=0.2)
