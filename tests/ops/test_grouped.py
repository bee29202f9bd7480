"""Products of rows with the matrix of their own expert, in value and in gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from transformer.ops import grouped
from transformer.ops.grouped import Groups, block_rows
from transformer.ops.product import product

# rows of each expert, block, D, F
CASES = {
  'all the same': ([8, 8, 8], 8, 3, 5),
  'some have none': ([0, 17, 0, 3, 0], 8, 4, 2),
  'all have one': ([0, 40, 0], 16, 3, 3),
  'fewer rows than experts': ([1, 0, 0, 1, 0, 0, 1], 8, 2, 6),
  'none at all': ([0, 0], 8, 2, 3),
  'of one expert': ([9], 32, 3, 2),
  'large blocks': ([130, 1, 128], 128, 5, 4),
}


def groups_of(counts: list[int], block: int) -> Groups:
  blocks_E = -(-np.array(counts) // block)
  return Groups(jnp.asarray(block * (np.cumsum(blocks_E) - blocks_E)), jnp.asarray(blocks_E))


@functools.cache
def compiled(name: str, block: int):
  """(x, w, groups, c) -> y, and the gradients of Σ c·y by x and w."""
  function = getattr(grouped, name)

  def both(x, w, groups, c):
    y, back = jax.vjp(lambda x, w: function(x, w, groups, block, product), x, w)
    return y, *back(c)

  return jax.jit(both)


def numpy(x, w, counts: list[int], block: int, c) -> tuple[np.ndarray, ...]:
  """The same by a loop over rows, in float64."""
  y, dx, dw = np.zeros(c.shape), np.zeros(x.shape), np.zeros(w.shape)
  row = 0
  for e, count in enumerate(counts):
    for _ in range(-(-count // block) * block):  # those that fill up a block are rows, too
      y[row], dx[row] = x[row] @ w[e], w[e] @ c[row]
      dw[e] += np.outer(x[row], c[row])
      row += 1
  return y, dx, dw


def arrays(rows: int, counts: list[int], D: int, F: int, seed: int = 0) -> tuple:
  rng = np.random.default_rng(seed)
  shapes = (rows, D), (len(counts), D, F), (rows, F)
  return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


@pytest.mark.parametrize('name', ['reference', 'looped', 'ragged'])
@pytest.mark.parametrize('case', CASES)
def test_against_a_loop_over_rows(case, name):
  """With two blocks of rows behind the last group, which give 0."""
  counts, block, D, F = CASES[case]
  rows = block * (sum(-(-n // block) for n in counts) + 2)
  x, w, c = arrays(rows, counts, D, F)
  got = compiled(name, block)(x, w, groups_of(counts, block), c)
  expected = numpy(np.float64(x), np.float64(w), counts, block, np.float64(c))
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  if any(counts):  # negative control
    other = compiled(name, block)(x, w + np.float32(0.1), groups_of(counts, block), c)
    assert np.max(np.abs(other[0] - expected[0])) > 1e-2
    assert np.max(np.abs(other[1] - expected[1])) > 1e-2


SHARES = [16, 16, 16, 16], [64, 0, 0, 0], [0, 1, 40, 9], [0, 0, 0, 0]


def test_the_sizes_of_groups_are_not_compiled_in():
  """One program for any: as many rows, shared out otherwise."""
  x, w, c = arrays(64, [1] * 4, 3, 5)
  groups = [groups_of(counts, 8) for counts in SHARES]
  jax.block_until_ready(compiled('looped', 8)(x, w, groups[0], c))
  with battery.compilations() as seconds:
    for counts, own in zip(SHARES, groups, strict=True):
      for a, b in zip(compiled('looped', 8)(x, w, own, c), numpy(x, w, counts, 8, c), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  assert seconds == []


@pytest.mark.parametrize('name', ['looped', 'ragged'])
def test_at_the_size_of_a_run(name):
  """4096 rows, 8 experts, 64 -> 128, blocks of 128; against the reference, in float32."""
  counts = [700, 0, 1, 512, 900, 384, 1100, 499]
  block = block_rows(4096, 8)
  assert block == 128 and sum(counts) == 4096
  rows = 4096 + 8 * block
  x, w, c = arrays(rows, counts, 64, 128)
  groups = groups_of(counts, block)
  got, expected = (compiled(n, block)(x, w, groups, c) for n in (name, 'reference'))
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3)  # sums over up to 1100 rows
    assert np.std(b) > 1


@pytest.mark.parametrize('name', ['looped', 'ragged'])
def test_bfloat16_sums_the_gradient_of_weights_in_float32(name):
  """8192 products of 1 and 2⁻⁸, which in bfloat16 would stop adding up at 2."""
  block, counts = 128, [8192]
  x, c = jnp.ones((8192, 1), jnp.bfloat16), jnp.full((8192, 1), 2.0**-8, jnp.bfloat16)
  y, _, dw = compiled(name, block)(x, jnp.ones((1, 1, 1)), groups_of(counts, block), c)
  assert y.dtype == jnp.bfloat16 and dw.dtype == jnp.float32
  assert dw[0, 0, 0] == 32.0


@pytest.mark.parametrize(
  ('rows', 'experts', 'block'),
  [(1, 1, 8), (63, 2, 8), (64, 2, 16), (4096, 8, 128), (4096, 64, 32), (10**6, 8, 128), (8, 64, 8)],
)
def test_blocks_waste_at_most_a_quarter(rows, experts, block):
  """Of a block an expert wastes half on average, of 8 more at most."""
  assert block_rows(rows, experts) == block
  assert block == 8 or block * experts / 2 <= rows / 4


# As a dispatcher calls it: all devices of a mesh at once.
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
