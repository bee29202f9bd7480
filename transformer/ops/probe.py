"""Whether what replaces the references runs on this CPU, and is right: asked once at start."""

from __future__ import annotations

import functools
import sys

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
  for name, (fast, right, gradients) in _trials(dtype).items():
    if reason := difference(fast, right, ('value', *['gradient'] * gradients), dtype):
      print(f'{name} in {dtype}: the plain way is taken: {reason}', file=sys.stderr)
      keep_plain()
      return


def _trials(dtype: str) -> dict[str, tuple]:
  """name -> (what is fast, what is right, how many gradients each gives beside its value)."""
  keys = iter(jax.random.split(jax.random.key(0), 16))

  def draw(*shape: int, kind: str = dtype) -> jax.Array:
    return jax.random.normal(next(keys), shape, kind)

  def both(function: object, *inputs: jax.Array) -> tuple[jax.Array, ...]:
    y, back = jax.vjp(function, *inputs)
    return y, *back(jnp.ones_like(y))

  trials = {}
  for spec, x, w in (
    ('btd,df->btf', (2, 24, 32), (32, 520)),
    ('egcd,edf->egcf', (2, 2, 16, 64), (2, 64, 48)),
  ):
    given = draw(*x), draw(*w, kind='float32')
    fast, right = (
      functools.partial(both, functools.partial(multiply, spec), *given)
      for multiply in (product.product, product.reference)
    )
    trials[f'product {spec}'] = fast, right, 2
  q, k, v = draw(2, 80, 4, 16), draw(2, 80, 2, 16), draw(2, 80, 2, 16)
  mask = attention.self_mask(jnp.zeros((2, 80)), causal=True)
  trials['attention'] = (
    functools.partial(both, lambda *x: blocked(*x, mask, 0.25, True), q, k, v),
    functools.partial(both, lambda *x: attention.reference(*x, mask, 0.25), q, k, v),
    3,
  )
  return trials
