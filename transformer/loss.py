"""Losses as sums and counts, so that means over micro-batches and devices come out right."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(
  logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns (Σ −w log p(target), Σ w) in nats, float32.

  targets_BT: int32 ids, any value where the weight is 0.
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  targets_BT1 = jnp.maximum(targets_BT, 0)[..., None]
  hit_BT = jnp.take_along_axis(logits_BTV, targets_BT1, axis=-1)[..., 0]
  return jnp.sum((log_z_BT - hit_BT) * weights_BT), jnp.sum(weights_BT)
