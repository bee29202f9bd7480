"""How positions enter: by turning queries and keys, in the embedding, or in the scores."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.ops.backend import once
from transformer.ops.cast import cast


def positions_in_documents(segments_BT: jax.Array) -> jax.Array:
  """positions_BT counted from 0 at the start of each document of a packed row."""
  index_T = jnp.arange(segments_BT.shape[1])
  starts_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1] - 1) != 0
  return index_T - jax.lax.cummax(jnp.where(starts_BT, index_T, 0), axis=1)


class Turn(NamedTuple):
  """By how much each position turns each pair of a head's dimensions: (B, T, 1, H/2), float32."""

  cos: jax.Array
  sin: jax.Array


def turn(positions_BT: jax.Array, width: int, base: float) -> Turn:
  """The angles t · base^(−2h/H) of heads of a width H (Su et al. 2021, §3.2.2), for all layers."""
  half = width // 2
  rate_H = base ** (-jnp.arange(half, dtype=jnp.float32) / half)

  def of_row(positions_T: jax.Array) -> Turn:
    angle_T1H = positions_T[:, None, None] * rate_H
    return Turn(jnp.cos(angle_T1H), jnp.sin(angle_T1H))

  return once(of_row, positions_BT)


def rotate(x_BTNH: jax.Array, by: Turn) -> jax.Array:
  """Rotary embedding (Su et al. 2021, §3.2.2): turns each pair (h, h + H/2) by its angle."""
  one, two = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  parts = one * by.cos - two * by.sin, two * by.cos + one * by.sin
  return cast(jnp.concatenate(parts, axis=-1), x_BTNH.dtype)


def sinusoid(positions_BT: jax.Array, d_model: int) -> jax.Array:
  """Fixed sines, then cosines (Vaswani et al. 2017, §3.5), as (B, T, d_model) float32."""
  half = d_model // 2
  rate_D = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BTD = positions_BT[:, :, None] * rate_D
  return jnp.concatenate([jnp.sin(angle_BTD), jnp.cos(angle_BTD)], axis=-1)


def relative_buckets(
  back_TS: jax.Array, buckets: int, max_distance: int, causal: bool = True
) -> jax.Array:
  """bucket_TS of the distance t − s back (Raffel et al. 2020, §2.1), int32.

  Distances below half the buckets have a bucket each; from there to `max_distance` they share out
  the others logarithmically. Causal: keys ahead of the query, which the mask hides, count as
  distance 0; else the upper half of the buckets is for keys ahead.
  """
  if not causal:
    behind_TS = relative_buckets(jnp.abs(back_TS), buckets // 2, max_distance)
    return behind_TS + jnp.where(back_TS < 0, buckets // 2, 0)
  distance_TS = jnp.maximum(back_TS, 0)
  exact = buckets // 2
  far_TS = jnp.log(jnp.maximum(distance_TS, 1) / exact) / jnp.log(max_distance / exact)
  far_TS = exact + (far_TS * (buckets - exact)).astype(jnp.int32)
  return jnp.where(distance_TS < exact, distance_TS, jnp.minimum(far_TS, buckets - 1))


def alibi(back_TS: jax.Array, num_heads: int) -> jax.Array:
  """bias_NTS = −slope · |t − s| of distances t − s, slope 2^(−8(n+1)/N) (Press et al. 2022, §3)."""
  slope_N = 2.0 ** (-8.0 * jnp.arange(1, num_heads + 1) / num_heads)
  return -slope_N[:, None, None] * jnp.abs(back_TS)
