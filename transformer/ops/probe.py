"""Whether what replaces the references runs on this CPU, and is right: asked once at start."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from transformer.ops import attention, product
from transformer.ops.backend import keep_plain, lone_cpu
from transformer.ops.blocked import blocked
from transformer.ops.settle import difference


@functools.cache
def settle(dtype: str) -> None:
  """Tries products and attention in a type on a CPU; if one fails, references are used.

  Only bfloat16 can fail: XLA on CPU lacks some of its products into float32, and finds out when
  they run. A line says so.
  """
  if dtype != 'bfloat16' or not lone_cpu():
    return
  for name, (fast, right, given) in _trials(dtype).items():
    names = 'value', *['gradient'] * len(given)
    if reason := difference(_both(fast), _both(right), given, names, dtype):
      print(f'{name} in {dtype}: the plain way is taken: {reason}', file=sys.stderr)
      keep_plain()
      return


def _trials(dtype: str) -> dict[str, tuple]:
  """name -> (what is fast, what is right, what of)."""
  keys = iter(jax.random.split(jax.random.key(0), 16))

  def draw(*shape: int, kind: str = dtype) -> jax.Array:
    return jax.random.normal(next(keys), shape, kind)

  trials = {}
  for spec, x, w in (
    ('btd,df->btf', (2, 24, 32), (32, 520)),
    ('egcd,edf->egcf', (2, 2, 16, 64), (2, 64, 48)),
  ):
    ways = (functools.partial(way, spec) for way in (product.product, product.reference))
    trials[f'product {spec}'] = *ways, (draw(*x), draw(*w, kind='float32'))
  mask = attention.self_mask(jnp.zeros((2, 80)), causal=True)
  trials['attention'] = (
    lambda *x: blocked(*x, mask, 0.25, True),
    lambda *x: attention.reference(*x, mask, 0.25),
    (draw(2, 80, 4, 16), draw(2, 80, 2, 16), draw(2, 80, 2, 16)),
  )
  return trials


def _both(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
  """y and the gradients of y²/2; of y's sum XLA on CPU gets some wrong, which no run asks for."""

  def run(*given: jax.Array) -> tuple[jax.Array, ...]:
    y, back = jax.vjp(function, *given)
    return y, *back(y)

  return run
