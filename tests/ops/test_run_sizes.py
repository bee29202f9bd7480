"""What replaces the references is right at the sizes of runs: those of --preset=bench."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import loss
from transformer.ops.attention import attention, self_mask
from transformer.ops.attention import reference as plain_attention
from transformer.ops.cross_entropy import Unembedding, is_fused
from transformer.ops.product import product
from transformer.ops.product import reference as plain_product

RNG = np.random.default_rng(0)
ROUGH = {'float32': 1e-4, 'bfloat16': 0.03}  # of the largest entry


def draw(*shape: int, dtype: str = 'float32') -> jax.Array:
  return jnp.asarray(RNG.normal(size=shape), dtype)


def agree(fast, plain, given: tuple, dtype: str) -> None:
  """In value and gradients; the plain one in float32. That they differ at all is the control."""

  def both(function):
    def run(*x):
      y, back = jax.vjp(function, *x)
      return y, *back(
        jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
      )

    return jax.jit(run)

  assert str(jax.make_jaxpr(fast)(*given)) != str(jax.make_jaxpr(plain)(*given))
  found = both(fast)(*given)
  exact = both(plain)(*(x.astype(jnp.float32) for x in given))
  for ours, right in zip(found, exact, strict=True):
    off = np.max(np.abs(np.float32(ours) - right)) / np.max(np.abs(right))
    assert off < ROUGH[dtype]


@pytest.mark.parametrize('dtype', ROUGH)
@pytest.mark.parametrize(
  ('spec', 'x', 'w'),
  [
    ('btd,df->btf', (4, 256, 256), (256, 1024)),
    ('btf,fd->btd', (4, 256, 1024), (1024, 256)),
    ('btd,dnh->btnh', (4, 256, 256), (256, 4, 64)),
  ],
)
def test_products(spec, x, w, dtype):
  given = draw(*x, dtype=dtype), draw(*w)
  agree(lambda x, w: product(spec, x, w), lambda x, w: plain_product(spec, x, w), given, dtype)


def test_scores_into_a_wider_type():
  given = tuple(draw(2, 256, 4, 64, dtype='bfloat16') for _ in 'qk')

  def scores(multiply, q: jax.Array, k: jax.Array) -> jax.Array:
    return multiply('btnh,bsnh->bnts', q, k, 'float32')

  agree(lambda *x: scores(product, *x), lambda *x: scores(plain_product, *x), given, 'bfloat16')


@pytest.mark.parametrize('dtype', ROUGH)
def test_attention(dtype):
  segments = jnp.asarray(np.cumsum(RNG.random((2, 256)) < 0.02, axis=1))
  mask, given = (
    self_mask(segments, causal=True),
    tuple(draw(2, 256, 4, 64, dtype=dtype) for _ in '123'),
  )
  agree(
    lambda *x: attention(*x, mask, causal=True), lambda *x: plain_attention(*x, mask), given, dtype
  )


@pytest.mark.parametrize('dtype', ROUGH)
def test_loss(dtype):
  ids = jnp.asarray(RNG.integers(0, 8192, (4, 256)))
  weights = jnp.asarray(RNG.random((4, 256)) < 0.9, jnp.float32)
  assert is_fused(4 * 256, 8192)

  def total(x: jax.Array, table: jax.Array, whole: bool) -> jax.Array:
    made_of = Unembedding(x, table, None)
    return loss.sums(made_of.logits() if whole else made_of, ids, weights)[0]

  given = 0.1 * draw(4, 256, 256), draw(8192, 256)
  agree(
    lambda x, t: total(x, t, False),
    lambda x, t: total(x, t, True),
    (given[0].astype(dtype), given[1]),
    dtype,
  )
