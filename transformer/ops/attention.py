"""Scaled dot-product attention: the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer.ops.product import product

_MASKED = -1e30  # finite, so that a fully masked row gives a number and no NaN


def attention(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  value_BSKH: jax.Array,
  mask_BTS: jax.Array,
  scale: float | None = None,
  bias_NTS: jax.Array | None = None,
  cap: float = 0.0,
) -> jax.Array:
  """softmax(q·k · scale + bias) v where mask allows (Vaswani et al. 2017, §3.2.1), in float32.

  N must be a multiple of K: neighbouring queries share a key/value head (Ainslie et al. 2023).
  mask_BTS: True where a query may look; a leading 1 broadcasts over the batch.
  scale: 1/√H unless given. cap: bounds the scores, as in `scores`.
  Returns out_BTNH.
  """
  scores_BNTS = scores(query_BTNH, key_BSKH, scale, bias_NTS, cap)
  scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, _MASKED)
  weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(query_BTNH.dtype)
  return product('bnts,bsnh->btnh', weights_BNTS, _per_query_head(value_BSKH, query_BTNH))


def scores(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  scale: float | None = None,
  bias_NTS: jax.Array | None = None,
  cap: float = 0.0,
) -> jax.Array:
  """scores_BNTS before mask and softmax, float32.

  cap: if above 0, q·k · scale becomes cap · tanh(itself / cap) (Gemma Team 2024, §2).
  """
  scale = query_BTNH.shape[-1] ** -0.5 if scale is None else scale
  key_BSNH = _per_query_head(key_BSKH, query_BTNH)
  scores_BNTS = product('btnh,bsnh->bnts', query_BTNH * scale, key_BSNH, out='float32')
  scores_BNTS = soft_cap(scores_BNTS, cap)
  return scores_BNTS if bias_NTS is None else scores_BNTS + bias_NTS.astype(jnp.float32)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """cap · tanh(x / cap), between −cap and cap; x itself where cap is 0."""
  return cap * jnp.tanh(x / cap) if cap else x


def _per_query_head(x_BSKH: jax.Array, query_BTNH: jax.Array) -> jax.Array:
  groups = query_BTNH.shape[2] // x_BSKH.shape[2]
  return x_BSKH if groups == 1 else jnp.repeat(x_BSKH, groups, axis=2)


def causal_mask(length: int, segments_BT: jax.Array | None) -> jax.Array:
  """mask_BTS: each token sees itself and earlier tokens, of its own document if segments are given.

  segments_BT: a number per document of a packed row, or None for one document a row.
  """
  mask_1TS = jnp.tril(jnp.ones((1, length, length), bool))
  if segments_BT is None:
    return mask_1TS
  return mask_1TS & (segments_BT[:, :, None] == segments_BT[:, None, :])
