"""Attention against loops over queries and keys, and what it must not see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference, reference_source
from transformer.attention import Attention
from transformer.ops.attention import attention, cached, scores, self_mask, soft_cap
from transformer.positions import alibi, turn

B, T, N, H = 2, 6, 3, 4
D = 10
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (2 * RNG.normal(size=(3, B, T, N, H))).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3], [0, 1, 1, 1, 1, 1]])
X = RNG.normal(size=(B, T, D)).astype(np.float32)


ALIBI = np.asarray(alibi(np.subtract.outer(np.arange(T), np.arange(T)), N))
VARIANTS = {  # how attention is called: ours, the oracle
  'plain': ({}, {}),
  'biased': ({'bias_NTS': ALIBI}, {'bias': lambda n, distance: ALIBI[n, distance, 0]}),
  'capped': ({'cap': 2.0}, {'largest': 2.0}),
  'both': (
    {'bias_NTS': ALIBI, 'cap': 2.0},
    {'bias': lambda n, distance: ALIBI[n, distance, 0], 'largest': 2.0},
  ),
}


def oracle(query, key, value, segments=SEGMENTS, **how) -> np.ndarray:
  masks = [reference.visible(row) for row in segments]
  rows = zip(*map(np.float64, (query, key, value)), masks, strict=True)
  return np.stack([reference.attention(*row, **how) for row in rows])


@pytest.mark.parametrize('variant', VARIANTS)
def test_against_loops_over_queries_and_keys(variant):
  mask = self_mask(jnp.asarray(SEGMENTS), causal=True)
  ours, theirs = VARIANTS[variant]
  got = attention(QUERY, KEY, VALUE, mask, **ours)
  expected = oracle(QUERY, KEY, VALUE, **theirs)
  np.testing.assert_allclose(got, expected, atol=3e-6)
  wrong = [oracle(QUERY, KEY, VALUE, np.zeros_like(SEGMENTS), **theirs)]  # as one document
  wrong += [oracle(QUERY, KEY, VALUE, **o) for name, (_, o) in VARIANTS.items() if name != variant]
  assert all(np.max(np.abs(got - other)) > 0.02 for other in wrong)  # negative control


@pytest.mark.parametrize(('heads', 'kv_heads'), [(6, 3), (6, 2), (6, 1), (4, 4)])
def test_neighbouring_queries_share_a_key_and_value_head(heads, kv_heads):
  """Query n looks at head n // (N/K), and not at n % K."""
  query = RNG.normal(size=(B, T, heads, H)).astype(np.float32)
  key, value = RNG.normal(size=(2, B, T, kv_heads, H)).astype(np.float32)
  mask = self_mask(jnp.asarray(SEGMENTS), causal=True)
  got = attention(query, key, value, mask)
  np.testing.assert_allclose(got, oracle(query, key, value), atol=2e-6)
  full = [np.repeat(x, heads // kv_heads, axis=2) for x in (key, value)]
  np.testing.assert_allclose(got, attention(query, *full, mask), atol=1e-6)
  tiled = [np.tile(x, (1, 1, heads // kv_heads, 1)) for x in (key, value)]
  off = np.max(np.abs(got - attention(query, *tiled, mask)))
  assert (off > 0.1) == (1 < kv_heads < heads)  # negative control


def test_scores_by_hand():
  """q·k = 3 · scale 2 = 6, capped at 4: 4 tanh(6/4) = 3.6205931; the bias comes after the cap."""
  query, key = (jnp.full((1, 1, 1, 1), x) for x in (1.0, 3.0))
  assert float(scores(query, key, 2.0)[0, 0, 0, 0]) == 6.0
  assert float(scores(query, key, 2.0, cap=4.0)[0, 0, 0, 0]) == pytest.approx(3.6205931, rel=1e-6)
  biased = scores(query, key, 2.0, jnp.full((1, 1, 1), -0.5), 4.0)
  assert float(biased[0, 0, 0, 0]) == pytest.approx(3.1205931, rel=1e-6)
  assert float(scores(query, key)[0, 0, 0, 0]) == 3.0  # 1/√H


def test_soft_cap():
  """Bounded, the identity near 0, and x itself at 0."""
  x = jnp.array([-1e9, -5.0, -1e-3, 0.0, 1e-3, 5.0, 1e9])
  assert soft_cap(x, 0.0) is x
  capped = np.asarray(soft_cap(x, 5.0))
  np.testing.assert_allclose(capped, 5 * np.tanh(np.float64(x) / 5), rtol=1e-6)
  assert np.all(np.abs(capped) <= 5) and capped[2] == pytest.approx(-1e-3, rel=1e-5)


def test_gradient_against_finite_differences():
  mask = self_mask(jnp.asarray(SEGMENTS), causal=True)
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
  mask = np.asarray(self_mask(jnp.array([[1, 1, 2, 2]]), causal=True)).astype(int)
  assert mask.tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]
  one = jnp.zeros((1, 4))
  assert np.array_equal(self_mask(one, causal=True), np.tril(np.ones((1, 4, 4), bool)))
  narrow = np.asarray(self_mask(one, causal=True, window=2)).astype(int)
  assert narrow.tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]]
  both = np.asarray(self_mask(jnp.array([[1, 1, 1, -1]]), causal=False, window=2)).astype(int)
  assert both.tolist() == [[[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]]


def test_hand_derived():
  """Scores log 3 and log 1 give weights 3/4 and 1/4; H is 4, so q·k is twice the score."""
  query = np.array([0, 1.0, 0, 0]).reshape(1, 1, 1, 4)
  key = np.array([[0, 2 * np.log(3), 0, 0], [1.0, 0, 1, 1]]).reshape(1, 2, 1, 4)
  value = np.array([[4.0, 0, 8, 0], [0.0, 4, 0, 0]]).reshape(1, 2, 1, 4)
  got = attention(*(jnp.float32(a) for a in (query, key, value)), jnp.ones((1, 1, 2), bool))
  np.testing.assert_allclose(np.ravel(got), [3, 1, 6, 0], rtol=1e-6)


def test_large_scores_and_a_masked_row_stay_finite():
  mask = self_mask(jnp.zeros((1, T)), causal=True)
  assert np.all(np.isfinite(attention(1e4 * QUERY, KEY, VALUE, mask)))
  nothing = attention(QUERY, KEY, VALUE, jnp.zeros((1, T, T), bool))
  assert np.all(np.isfinite(nothing))


def test_masked_keys_have_no_gradient():
  """Not even a little: what is masked is cut, not made small."""
  mask = self_mask(jnp.asarray(SEGMENTS), causal=True)
  last = lambda key, value: jnp.sum(attention(QUERY, key, value, mask)[:, 4])  # noqa: E731
  for grad in jax.grad(last, argnums=(0, 1))(KEY, VALUE):
    seen = np.any(np.asarray(grad) != 0, axis=(2, 3))
    assert seen.tolist() == [[False, False, False, True, True, False],
                             [False, True, True, True, True, False]]  # fmt: skip


def test_softmax_is_float32_under_bfloat16():
  args = [jnp.asarray(a, jnp.bfloat16) for a in (QUERY, KEY, VALUE)]
  got = attention(*args, self_mask(jnp.asarray(SEGMENTS), causal=True))
  assert got.dtype == jnp.bfloat16
  exact = oracle(*(np.asarray(a, np.float64) for a in args))
  np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=0.1)


MODULES = {  # settings of the module, and what they are to the oracle
  'rotary': ({}, {'base': 1e4}),
  'rotary, biased': ({'qkv_bias': True, 'out_bias': True}, {'base': 1e4}),
  'rotary(base=50)': ({}, {'base': 50.0}),
  'none, biased queries': ({'qkv_bias': True}, {}),
  'normed, shared': ({'qk_norm': True, 'num_kv_heads': 1, 'qkv_bias': True}, {'base': 1e4}),
  'capped': ({'cap': 1.5, 'qkv_bias': True}, {'largest': 1.5}),
  'narrow values': ({'v_head_dim': 3, 'qkv_bias': True}, {'base': 1e4}),
  'wide values, shared': ({'v_head_dim': 7, 'num_kv_heads': 1}, {'base': 1e4}),
  'normed, no rotation': ({'qk_norm': True, 'out_bias': True}, {}),
}


@pytest.mark.parametrize('name', MODULES)
def test_module_against_loops(name):
  settings, theirs = MODULES[name]
  module = Attention(N, H, causal=True, **settings)
  where = np.stack([reference.positions(row) for row in SEGMENTS])
  by = turn(jnp.asarray(where), H, theirs['base']) if 'base' in theirs else None
  args = jnp.asarray(X), self_mask(jnp.asarray(SEGMENTS), causal=True), by
  weights = battery.jiggle(jax.jit(module.init)(jax.random.key(0), *args)['params'])
  apply = jax.jit(lambda w: module.apply({'params': w}, *args))
  rows = zip(np.float64(X), SEGMENTS, strict=True)
  exact = jax.tree.map(np.float64, weights)
  expected = np.stack([reference.self_attention(exact, *row, **theirs) for row in rows])
  np.testing.assert_allclose(apply(weights), expected, atol=3e-5)
  assert settings.get('qkv_bias', False) == ('query_bias' in weights)
  assert settings.get('out_bias', False) == ('out_bias' in weights)
  for path in battery.flat(weights):
    off = np.max(np.abs(apply(battery.poke(weights, path)) - expected))
    # Without rotation and without a cap, a bias of the keys adds one number to all scores of a
    # query: softmax does not see it. Everything else is seen.
    assert (off > 1e-3) == (path != 'key_bias' or name != 'none, biased queries'), path


@pytest.mark.parametrize('factor', [0.0, 0.5])
def test_out_begins_at_its_factor(factor):
  x, mask = jnp.asarray(X), self_mask(jnp.zeros((1, T)), causal=True)
  tree = [
    Attention(N, H, out_init=f, branches=4).init(jax.random.key(0), x, mask)['params']
    for f in (1.0, factor)
  ]
  for name in tree[0]:
    scale = factor if name == 'out' else 1.0
    np.testing.assert_allclose(tree[1][name], scale * tree[0][name], rtol=1e-6, err_msg=name)


def test_queries_and_keys_are_normed_over_the_width_of_a_head():
  """With qk_norm, scores stay below √H · |scale| however large the weights are."""
  module = Attention(N, H, qk_norm=True)
  args = jnp.asarray(X), self_mask(jnp.zeros((1, T)), causal=True)
  weights = module.init(jax.random.key(0), *args)['params']
  assert weights['query_norm']['scale'].shape == weights['key_norm']['scale'].shape == (H,)
  large = weights | {name: 100 * weights[name] for name in ('query', 'key')}
  one, other = (module.apply({'params': w}, *args) for w in (weights, large))
  np.testing.assert_allclose(one, other, atol=1e-4)  # epsilon is all that differs


@pytest.mark.parametrize(('width', 'v_width'), [(2, 0), (8, 0), (64, 0), (8, 24), (64, 8)])
def test_scores_have_unit_variance_at_init(width, v_width):
  """x of unit variance, W of variance 1/D: q and k have unit variance, and so has q·k / √d_k.

  Whatever d_v is. Without the division it is d_k: the negative control.
  """
  x = jnp.asarray(RNG.normal(size=(4, 32, 64)).astype(np.float32))
  args = x, jnp.ones((1, 32, 32), bool)
  for scale, variance in ((0.0, 1), (1.0, width)):
    module = Attention(8, width, v_head_dim=v_width, scale=scale)
    weights = module.init(jax.random.key(1), *args)['params']
    assert weights['value'].shape == (64, 8, v_width or width)
    y, seen = module.apply({'params': weights}, *args, mutable=['observed'])
    squares = {k: v['sum_squares'] / v['count'] for k, v in seen['observed'].items()}
    assert squares['query'] == pytest.approx(1, rel=0.15)
    assert squares['key'] == pytest.approx(1, rel=0.15)
    assert squares['value'] == pytest.approx(1, rel=0.15)
    assert squares['scores'] == pytest.approx(variance, rel=0.25)
    assert y.shape == x.shape


MIX = np.zeros((T, T), np.float32)
MIX[np.arange(T), np.arange(T)] = MIX[np.arange(T), (np.arange(T) + 1) % T] = 1  # each and its next


def test_given_weights_take_the_place_of_the_softmax():
  """Each position gets its own values and the next one's: a linear combination, no scores asked."""
  module, args = Attention(N, H, v_head_dim=5), (jnp.asarray(X), jnp.ones((1, T, T), bool))
  weights = jax.jit(module.init)(jax.random.key(0), *args)['params']
  given = np.broadcast_to(MIX, (B, N, T, T))
  apply = jax.jit(lambda w, a: module.apply({'params': w}, *args, weights_BNTS=a))
  values = np.einsum('btd,dnw->btnw', X, weights['value'])
  expected = np.einsum('btnw,nwd->btd', values + np.roll(values, -1, axis=1), weights['out'])
  np.testing.assert_allclose(apply(weights, given), expected, atol=1e-5)
  for name in ('query', 'key'):
    assert np.array_equal(apply(battery.poke(weights, name), given), apply(weights, given))
  other = apply(weights, np.swapaxes(given, 2, 3))  # negative control: the one before
  assert np.max(np.abs(other - expected)) > 0.1


@pytest.mark.parametrize('kv_heads', [0, 1])
def test_cross_attention_against_loops(kv_heads):
  """Queries of one sequence, keys and values of another."""
  module = Attention(N, H, kv_heads, v_head_dim=5, qkv_bias=True, qk_norm=True, cross=True)
  memory = RNG.normal(size=(B, 4, D)).astype(np.float32)
  mask = jnp.array([[[1, 1, 1, 1]], [[1, 1, 0, 0]]], bool)
  args = jnp.asarray(X), mask, None, None, jnp.asarray(memory)
  weights = battery.jiggle(jax.jit(module.init)(jax.random.key(0), *args)['params'])
  apply = jax.jit(lambda w: module.apply({'params': w}, *args))
  exact = jax.tree.map(np.float64, weights)
  expected = np.stack(
    [
      reference_source.cross_attention(exact, np.float64(x), np.float64(m[:n]))
      for x, m, n in zip(X, memory, (4, 2), strict=True)
    ]
  )
  np.testing.assert_allclose(apply(weights), expected, atol=3e-5)
  for path in battery.flat(weights):
    assert np.max(np.abs(apply(battery.stir(weights, path)) - expected)) > 1e-3, path


KEPT = {  # rows, queries, heads, key/value heads, slots, H, W, at the sizes that decoding has
  'a token a row': (16, 1, 4, 4, 288, 64, 64),
  'beams': (4, 4, 4, 4, 544, 64, 64),
  'prompts, groups, other values': (3, 32, 6, 2, 96, 16, 24),
}


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize('how', ['plain', 'biased, capped'])
@pytest.mark.parametrize('case', KEPT)
def test_over_kept_keys_it_is_the_reference(case, how, turned):
  rows, queries, heads, kv_heads, slots, width, v_width = KEPT[case]
  rng = np.random.default_rng(0)
  query = rng.normal(size=(rows, queries, heads, width)).astype(np.float32)
  key = rng.normal(size=(rows, slots, kv_heads, width)).astype(np.float32)
  value = rng.normal(size=(rows, slots, kv_heads, v_width)).astype(np.float32)
  mask = rng.random((rows, queries, slots)) < 0.7
  more = {'scale': 0.2}
  if how != 'plain':
    more |= {'bias_NTS': rng.normal(size=(heads, queries, slots)).astype(np.float32), 'cap': 2.0}
  rows_of = lambda x: x.transpose(0, 2, 1, 3).reshape(rows * kv_heads, slots, -1)  # noqa: E731
  kept = rows_of(key).swapaxes(1, 2) if turned else rows_of(key)
  over = jax.jit(lambda key, mask: cached(query, key, rows_of(value), mask, **more, turned=turned))
  expected = attention(query, key, value, jnp.asarray(mask), **more)
  np.testing.assert_allclose(over(kept, mask), expected, atol=2e-5)
  stirred = kept.copy()
  stirred[-1] += 0.3 * rng.normal(size=kept[-1].shape).astype(np.float32)  # negative controls
  assert np.max(np.abs(over(stirred, mask) - expected)) > 0.01
  assert np.max(np.abs(over(kept, ~mask) - expected)) > 0.01
