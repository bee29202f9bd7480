"""How positions enter: rotated queries and keys, or a vector added to the embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def positions_in_documents(segments_BT: jax.Array) -> jax.Array:
  """positions_BT counted from 0 at the start of each document of a packed row."""
  index_T = jnp.arange(segments_BT.shape[1])
  starts_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1] - 1) != 0
  return index_T - jax.lax.cummax(jnp.where(starts_BT, index_T, 0), axis=1)


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
  """Rotary embedding (Su et al. 2021, §3.2.2): pair (h, h + H/2) turns by t · base^(−2h/H)."""
  half = x_BTNH.shape[-1] // 2
  wavelength_H = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BTNH = positions_BT[:, :, None, None] * wavelength_H
  sin, cos = jnp.sin(angle_BTNH), jnp.cos(angle_BTNH)
  one, two = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)
  return turned.astype(x_BTNH.dtype)


def sinusoid(positions_BT: jax.Array, d_model: int) -> jax.Array:
  """Fixed sines, then cosines (Vaswani et al. 2017, §3.5), as (B, T, d_model) float32."""
  half = d_model // 2
  rate_D = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BTD = positions_BT[:, :, None] * rate_D
  return jnp.concatenate([jnp.sin(angle_BTD), jnp.cos(angle_BTD)], axis=-1)
