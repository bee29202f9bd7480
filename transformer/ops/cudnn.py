"""Attention by cuDNN's fused kernels, where they run and are right."""

from __future__ import annotations

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.ops.settle import difference


class Shape(NamedTuple):
  """Of queries (B, T, N, H) and of keys and values (B, S, K, H), in a type."""

  B: int
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
  return jax.nn.dot_product_attention(
    *(query_BTNH, key_BSKH, value_BSKW),
    mask=mask_BTS[:, None],
    scale=scale,
    implementation='cudnn',
  )


def is_right(query_BTNH: jax.Array, key_BSKH: jax.Array) -> bool:
  """Whether `settle` found `attention` right at this shape."""
  return _RIGHT.get(_shape(query_BTNH, key_BSKH), False)


def settle(shape: Shape) -> None:
  """Tries `attention` at a shape, in value and gradient, on a GPU; elsewhere it is not used.

  Says in a line why, where it is not.
  """
  if shape in _RIGHT or jax.default_backend() != 'gpu':
    return
  from transformer.ops.attention import reference

  keys = jax.random.split(jax.random.key(0), 4)
  queries, stored = (shape.B, shape.T, shape.N, shape.H), (shape.B, shape.S, shape.K, shape.H)
  sizes = queries, stored, stored, queries
  *inputs, g = (jax.random.normal(k, s, shape.dtype) for k, s in zip(keys, sizes, strict=True))
  mask_BTS = jnp.arange(shape.T)[:, None] >= jnp.arange(shape.S)
  mask_BTS = jnp.broadcast_to(mask_BTS, (shape.B, shape.T, shape.S))

  def by(function: object) -> tuple[jax.Array, ...]:
    out, back = jax.vjp(lambda *x: function(*x, mask_BTS, shape.H**-0.5), *inputs)
    return out, *back(g)

  names = ('value', 'gradient by queries', 'gradient by keys', 'gradient by values')
  reason = difference(lambda: by(attention), lambda: by(reference), names, shape.dtype)
  _RIGHT[shape] = not reason
  if reason:
    print(f'attention by cuDNN: not used: {reason}', file=sys.stderr)


def _shape(query_BTNH: jax.Array, key_BSKH: jax.Array) -> Shape:
  B, T, N, H = query_BTNH.shape
  return Shape(B, T, N, H, *key_BSKH.shape[1:3], str(query_BTNH.dtype))
