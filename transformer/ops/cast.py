"""float32 to bfloat16 and back, and matrices turned, at the speed of integers on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from transformer.ops.backend import lone_cpu


def cast(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """x in another type, rounded to nearest even."""
  dtype = jnp.dtype(dtype)
  if x.dtype == dtype:
    return x
  pair = (x.dtype, dtype)
  if pair in ((jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)) and lone_cpu():
    return _between(x, dtype)
  return x.astype(dtype)


@jax.custom_vjp
def _round(x: jax.Array) -> jax.Array:
  return _rounded(x)


def _rounded(x: jax.Array) -> jax.Array:
  """By integers: XLA's own conversion on CPU is a chain of compares. NaN stays NaN."""
  bits = lax.bitcast_convert_type(x, jnp.uint32)
  bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
  return lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


_round.defvjp(lambda x: (_rounded(x), None), lambda _, g: (g.astype(jnp.float32),))


@jax.custom_vjp
def _widen(x: jax.Array) -> jax.Array:
  return x.astype(jnp.float32)


_widen.defvjp(lambda x: (x.astype(jnp.float32), None), lambda _, g: (_rounded(g),))


def _between(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
  return _round(x) if dtype == jnp.bfloat16 else _widen(x)


def turned(x_MK: jax.Array) -> jax.Array:
  """x transposed, laid out anew: XLA on CPU folds a plain transpose into the product after it.

  A product that contracts the leading dimension of both operands runs at half the speed there.
  """
  if jax.default_backend() != 'cpu':
    return x_MK.T
  if x_MK.dtype.itemsize == 2 and len(x_MK) % 2 == 0:  # two rows as one of 32 bits
    bits = lax.bitcast_convert_type(x_MK, jnp.uint16).astype(jnp.uint32)
    bits = bits.reshape(len(x_MK) // 2, 2, -1)
    pairs = (bits[:, 0] | (bits[:, 1] << 16)).T
    return lax.bitcast_convert_type(pairs, x_MK.dtype).reshape(x_MK.shape[::-1])
  whole = jnp.uint16 if x_MK.dtype.itemsize == 2 else jnp.uint32
  bits = lax.bitcast_convert_type(x_MK, whole).T
  return lax.bitcast_convert_type(bits | (bits & 1), x_MK.dtype)  # itself, which XLA does not see
