"""Scaled dot-product attention: the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer.ops.product import product

_MASKED = -1e30  # finite, so that a fully masked row gives a number and no NaN


def attention(
  query_BTNH: jax.Array, key_BSNH: jax.Array, value_BSNH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
  """softmax(q·k / √H) v where mask allows (Vaswani et al. 2017, §3.2.1). Softmax in float32.

  mask_BTS: True where a query may look; a leading 1 broadcasts over the batch.
  Returns out_BTNH.
  """
  scale = query_BTNH.shape[-1] ** -0.5
  scores_BNTS = product('btnh,bsnh->bnts', query_BTNH * scale, key_BSNH, out='float32')
  scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, _MASKED)
  weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(query_BTNH.dtype)
  return product('bnts,bsnh->btnh', weights_BNTS, value_BSNH)


def causal_mask(length: int, segments_BT: jax.Array | None) -> jax.Array:
  """mask_BTS: each token sees itself and earlier tokens, of its own document if segments are given.

  segments_BT: a number per document of a packed row, or None for one document a row.
  """
  mask_1TS = jnp.tril(jnp.ones((1, length, length), bool))
  if segments_BT is None:
    return mask_1TS
  return mask_1TS & (segments_BT[:, :, None] == segments_BT[:, None, :])
