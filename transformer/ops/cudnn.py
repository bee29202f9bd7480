"""Attention by cuDNN's fused kernels, where they run and are right."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.ops.settle import difference


class Shape(NamedTuple):
  """Of queries (·, T, N, H) and of keys and values (·, S, K, H), in a type."""

  T: int
  N: int
  H: int
  S: int
  K: int
  dtype: str


_RIGHT: dict[Shape, bool] = {}


def attention(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  value_BSKW: jax.Array,
  mask_BTS: jax.Array,
  scale: float,
) -> jax.Array:
  """softmax(q·k · scale) v where mask allows, of GPUs from Ampere on, in bfloat16."""
  (B, T), S = query_BTNH.shape[:2], key_BSKH.shape[1]
  return jax.nn.dot_product_attention(
    *(query_BTNH, key_BSKH, value_BSKW),
    mask=jnp.broadcast_to(mask_BTS[:, None], (B, 1, T, S)),  # it takes none of fewer queries
    scale=scale,
    implementation='cudnn',
  )


def is_right(query_BTNH: jax.Array, key_BSKH: jax.Array, value_BSKW: jax.Array) -> bool:
  """Whether `settle` found `attention` right at this shape; of values as wide as keys alone."""
  return value_BSKW.shape == key_BSKH.shape and _RIGHT.get(_shape(query_BTNH, key_BSKH), False)


def settle(shape: Shape) -> str:
  """Tries `attention` at a shape, in value and gradient, on a GPU; elsewhere it is not used.

  Says in a line why, where it is not. Returns the name of what is.
  """
  if jax.default_backend() == 'gpu' and shape not in _RIGHT:
    _RIGHT[shape] = _tried(shape)
  return 'cudnn' if _RIGHT.get(shape) else 'reference'


def _tried(shape: Shape) -> bool:
  from transformer.ops.attention import reference

  keys = jax.random.split(jax.random.key(0), 4)
  queries, stored = (2, shape.T, shape.N, shape.H), (2, shape.S, shape.K, shape.H)
  sizes = queries, stored, stored, queries
  given = [jax.random.normal(k, s, shape.dtype) for k, s in zip(keys, sizes, strict=True)]
  mask_BTS = jnp.arange(shape.T)[:, None] >= jnp.arange(shape.S)
  mask_BTS = jnp.broadcast_to(mask_BTS, (2, shape.T, shape.S))

  def by(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    def run(query, key, value, g) -> tuple[jax.Array, ...]:
      masked = functools.partial(function, mask_BTS=mask_BTS, scale=shape.H**-0.5)
      out, back = jax.vjp(masked, query, key, value)
      return out, *back(g)

    return run

  names = ('value', 'gradient by queries', 'gradient by keys', 'gradient by values')
  reason = difference(by(attention), by(reference), given, names, shape.dtype)
  if reason:
    print(f'attention by cuDNN: not used: {reason}', file=sys.stderr)
  return not reason


def _shape(query_BTNH: jax.Array, key_BSKH: jax.Array) -> Shape:
  return Shape(*query_BTNH.shape[1:], *key_BSKH.shape[1:3], str(query_BTNH.dtype))
