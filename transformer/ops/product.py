"""Every matrix product of the model goes through here: the one place for a faster one."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def product(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """einsum(spec, x, w) in the type of `x`: the reference.

  spec: an einsum of two operands in shape letters, as in 'btd,df->btf'.
  The weight is cast to the compute type here, so master weights stay float32.
  """
  return jnp.einsum(spec, x, w.astype(x.dtype))
