"""Every matrix product of the model goes through here: the one place for a faster one."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Product = Callable[..., jax.Array]  # (spec, x, w) -> einsum, as `product`


def product(spec: str, x: jax.Array, w: jax.Array, out: str | None = None) -> jax.Array:
  """einsum(spec, x, w) of operands in the type of `x`: the reference.

  spec: an einsum of two operands in shape letters, as in 'btd,df->btf'.
  The weight is cast to the compute type here, so master weights stay float32.
  out: type of the result, that of `x` unless given; float32 keeps what bfloat16 would round away.
  """
  return jnp.einsum(spec, x, w.astype(x.dtype), preferred_element_type=out or x.dtype)


def by_weight(spec: str, x: jax.Array, w: jax.Array, out: str = 'float32') -> jax.Array:
  """einsum(spec, x, w) of operands in the type of the weight, float32 unless told.

  For programs without a backward pass, whose gradient would be of mixed types: XLA on CPU
  multiplies bfloat16 into float32 twice as fast as into bfloat16.
  """
  return product(spec, x.astype(w.dtype), w, out)
