"""Attention in blocks is attention, in value and in gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.ops import blocked as ops
from transformer.ops.attention import reference, self_mask
from transformer.ops.blocked import blocked

RNG = np.random.default_rng(0)
B, T, N, H, W = 3, 11, 4, 6, 5
SEGMENTS = np.sort(RNG.integers(0, 3, (B, T)), axis=1)
CASES = {  # key/value heads, causal, segments, rows of the mask
  'causal': (4, True, None),
  'causal, packed': (4, True, SEGMENTS),
  'shared heads': (2, True, SEGMENTS),
  'one head for all': (1, True, SEGMENTS),
  'both ways': (4, False, SEGMENTS),
}


def arrays(heads: int, dtype: str, keys: int = T) -> tuple[jax.Array, ...]:
  shapes = (B, T, N, H), (B, keys, heads, H), (B, keys, heads, W), (B, T, N, W)
  return tuple(jnp.asarray(RNG.normal(size=s), dtype) for s in shapes)


def both(function, arrays, mask, *how) -> tuple:
  *inputs, g = arrays
  y, back = jax.vjp(lambda *x: function(*x, mask, *how), *inputs)
  return y, *back(g.astype(y.dtype))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(ops, '_QUERIES', 4)  # so that there are blocks, the last one short


@pytest.mark.parametrize(
  ('name', 'dtype'),
  [*((name, 'float32') for name in CASES), ('causal', 'bfloat16'), ('shared heads', 'bfloat16')],
)
def test_value_and_gradients(name, dtype, monkeypatch):
  heads, causal, segments = CASES[name]
  if name == 'causal, packed':
    monkeypatch.setattr(ops, '_SCORES', 1)  # row by row
  mask = self_mask(jnp.zeros((1, T)) if segments is None else jnp.asarray(segments), causal)
  given = arrays(heads, dtype)
  got = jax.jit(lambda a: both(blocked, a, mask, 0.4, causal))(given)
  exact = both(reference, [x.astype('float32') for x in given], mask, 0.4)
  for ours, right, like in zip(got, exact, (*given[:1], *given[:3]), strict=True):
    size = float(jnp.max(jnp.abs(right)))
    close = size * (1e-5 if dtype == 'float32' else 0.03)
    np.testing.assert_allclose(np.float32(ours), right, rtol=0, atol=close)
    assert ours.dtype == like.dtype
  other = both(blocked, given, mask, 0.5, causal)  # negative control
  assert np.max(np.abs(np.float32(other[0]) - exact[0])) > 0.01


def test_another_sequence_under_a_mask_of_one_row():
  """As a decoder looks at a source: other keys than queries, the same for every query."""
  mask = jnp.asarray(np.arange(7) < np.array([7, 3, 1])[:, None])[:, None]
  given = arrays(2, 'float32', keys=7)
  got, right = both(blocked, given, mask, 0.3, False), both(reference, given, mask, 0.3)
  for ours, theirs in zip(got, right, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_query_that_looks_nowhere_gives_no_gradient():
  mask = jnp.asarray(np.arange(7) < np.array([7, 0, 3])[:, None])[:, None]  # the second row's
  *inputs, g = arrays(2, 'float32', keys=7)
  seen = g.at[1].set(0.0)
  got = both(blocked, (*inputs, g), mask, 0.3, False)
  right = both(reference, (*inputs, seen), mask, 0.3)
  for ours, theirs in zip(got, right, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
  asked = both(reference, (*inputs, g), mask, 0.3)  # negative control: the reference's is asked for
  assert np.max(np.abs(asked[3][1])) > 0.1 > np.max(np.abs(got[3][1]))


def test_keys_ahead_are_not_multiplied():
  """Of T queries in blocks of 4 the first meet 4 keys, not T: fewer products than all pairs."""
  found = [(at, seen) for at, seen in ops._blocks(10, 10, True)]
  assert found == [(slice(b, e), slice(0, e)) for b, e in ((0, 4), (4, 8), (8, 10))]
  assert all(seen == slice(0, 10) for _, seen in ops._blocks(10, 10, False))
  assert len(list(ops._blocks(10_000, 10_000, True))) == 16  # long ones are not cut small
