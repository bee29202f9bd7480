"""Losses as sums and counts, so that means over micro-batches and devices come out right."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer.ops import cross_entropy
from transformer.ops.cross_entropy import Unembedding, losses


def sums(
  logits: jax.Array | Unembedding,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  label_smoothing: float = 0.0,
  z_loss: jax.typing.ArrayLike = 0.0,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns (Σ w · objective, (Σ −w log p(target), Σ w)) in nats, float32.

  The objective is cross-entropy with the target's distribution mixed with `label_smoothing` of the
  uniform one (Szegedy et al. 2016, §7), plus `z_loss` · log² Z (Zoph et al. 2022, ST-MoE, eq. 5;
  Chowdhery et al. 2022, §5), which keeps logits from drifting together.

  logits: (B, T, V), or what they are made of. targets_BT: int32 ids, any value where the weight is
  0. The second and third sum have no gradient where logits are made here.
  """
  if isinstance(logits, Unembedding):
    found = cross_entropy.sums(logits, targets_BT, weights_BT, label_smoothing, z_loss)
    return found[0], (found[1], jnp.sum(weights_BT))
  logits_BTV, targets_BT = logits.astype(jnp.float32), jnp.maximum(targets_BT, 0)
  _, objective_BT, nats_BT = losses(logits_BTV, targets_BT, z_loss, label_smoothing)
  nats = jnp.sum(nats_BT * weights_BT)
  return jnp.sum(objective_BT * weights_BT), (nats, jnp.sum(weights_BT))
