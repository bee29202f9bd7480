"""Scaled dot-product attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer.ops import cudnn
from transformer.ops.backend import lone_cpu
from transformer.ops.blocked import blocked
from transformer.ops.product import product

_LEAST = 2**13  # scores of a row: with fewer, blocks take longer to compile than they save
_MASKED = -1e30  # finite, so that a fully masked row gives a number and no NaN


def attention(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  value_BSKW: jax.Array,
  mask_BTS: jax.Array,
  scale: float | None = None,
  bias_NTS: jax.Array | None = None,
  cap: float = 0.0,
  causal: bool = False,
) -> jax.Array:
  """softmax(q·k · scale + bias) v where mask allows (Vaswani et al. 2017, §3.2.1), in float32.

  N must be a multiple of K: neighbouring queries share a key/value head (Ainslie et al. 2023).
  mask_BTS: True where a query may look; a leading 1 broadcasts over the batch. Where a query may
  look nowhere, it gets the mean of all values: a number that means nothing, but a number.
  scale: 1/√H unless given. cap: bounds the scores, as in `scores`. causal: the mask hides all that
  is ahead of a query, and nobody asks what a query that may look nowhere gets.
  Returns out_BTNW, W the width of the values.

  On a lone CPU in blocks that stay in cache where nothing is added to many scores; on a GPU by
  cuDNN where `cudnn.settle` found it right; else as `reference`.
  """
  scale = query_BTNH.shape[-1] ** -0.5 if scale is None else scale
  if bias_NTS is None and not cap:
    _, T, N, _ = query_BTNH.shape
    if N * T * key_BSKH.shape[1] >= _LEAST and lone_cpu():
      return blocked(query_BTNH, key_BSKH, value_BSKW, mask_BTS, scale, causal)
    if cudnn.is_right(query_BTNH, key_BSKH, value_BSKW):
      return cudnn.attention(query_BTNH, key_BSKH, value_BSKW, mask_BTS, scale)
  return reference(query_BTNH, key_BSKH, value_BSKW, mask_BTS, scale, bias_NTS, cap)


def reference(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  value_BSKW: jax.Array,
  mask_BTS: jax.Array,
  scale: float | None = None,
  bias_NTS: jax.Array | None = None,
  cap: float = 0.0,
) -> jax.Array:
  """The same with all scores held at once."""
  weights_BNTS = weights(query_BTNH, key_BSKH, mask_BTS, scale, bias_NTS, cap)
  return mix(weights_BNTS, value_BSKW)


def weights(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  mask_BTS: jax.Array,
  scale: float | None = None,
  bias_NTS: jax.Array | None = None,
  cap: float = 0.0,
) -> jax.Array:
  """weights_BNTS: what each query takes of each key's value; they add up to 1."""
  scores_BNTS = scores(query_BTNH, key_BSKH, scale, bias_NTS, cap)
  scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, _MASKED)
  return jax.nn.softmax(scores_BNTS, axis=-1).astype(query_BTNH.dtype)


def mix(weights_BNTS: jax.Array, value_BSKW: jax.Array) -> jax.Array:
  """out_BTNW = Σ_s weight · value: a linear combination of the values of all positions."""
  value_BSNW = _per_query_head(value_BSKW, weights_BNTS.shape[1])
  return product('bnts,bsnw->btnw', weights_BNTS, value_BSNW)


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
  key_BSNH = _per_query_head(key_BSKH, query_BTNH.shape[2])
  scores_BNTS = product('btnh,bsnh->bnts', query_BTNH * scale, key_BSNH, out='float32')
  scores_BNTS = soft_cap(scores_BNTS, cap)
  return scores_BNTS if bias_NTS is None else scores_BNTS + bias_NTS.astype(jnp.float32)


def cached(
  query_BTNH: jax.Array,
  key_RSH: jax.Array,
  value_RSW: jax.Array,
  mask_BTS: jax.Array,
  scale: float,
  bias_NTS: jax.Array | None = None,
  cap: float = 0.0,
  turned: bool = False,
) -> jax.Array:
  """`attention` over kept keys and values: few queries, many keys, the rows of all heads in one.

  R is B · K: rows of a batch and, within them, key/value heads. Computed in the type of the keys.
  One axis of rows, because XLA copies a whole cache of (B, K, S, H) with B = 1 at each step on CPU.
  turned: the keys are (R, H, S), which is fastest where a row has several queries; with a single
  one the new key's scattered writes cost more.
  """
  rows, length, heads, width = query_BTNH.shape
  groups = heads * rows // key_RSH.shape[0]  # queries of a key/value head
  query_BNTH = (query_BTNH * scale).transpose(0, 2, 1, 3).astype(key_RSH.dtype)
  query_RQH = query_BNTH.reshape(-1, groups * length, width)
  if turned:
    scores_RQS = product('rqh,rhs->rqs', query_RQH, key_RSH, out='float32')
  elif groups * length == 1:  # a vector a row: XLA's product of matrices would be slower on CPU
    scores_RQS = product('rh,rsh->rs', query_RQH[:, 0], key_RSH, out='float32')
  else:
    scores_RQS = product('rqh,rsh->rqs', query_RQH, key_RSH, out='float32')
  scores_BNTS = soft_cap(scores_RQS.reshape(rows, heads, length, -1), cap)
  scores_BNTS = scores_BNTS if bias_NTS is None else scores_BNTS + bias_NTS
  scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, _MASKED)
  weights_RQS = jax.nn.softmax(scores_BNTS, axis=-1).reshape(len(key_RSH), groups * length, -1)
  if groups * length == 1:
    mixed_RQW = product('rs,rsw->rw', weights_RQS[:, 0].astype(value_RSW.dtype), value_RSW)
  else:
    mixed_RQW = product('rqs,rsw->rqw', weights_RQS.astype(value_RSW.dtype), value_RSW)
  mixed_BNTW = mixed_RQW.reshape(rows, heads, length, -1)
  return mixed_BNTW.transpose(0, 2, 1, 3).astype(query_BTNH.dtype)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """cap · tanh(x / cap), between −cap and cap; x itself where cap is 0."""
  return cap * jnp.tanh(x / cap) if cap else x


def _per_query_head(x_BSKH: jax.Array, num_heads: int) -> jax.Array:
  groups = num_heads // x_BSKH.shape[2]
  return x_BSKH if groups == 1 else jnp.repeat(x_BSKH, groups, axis=2)


def self_mask(segments_BT: jax.Array, causal: bool, window: int = 0) -> jax.Array:
  """mask_BTS of a sequence on itself: each token sees those of its own segment.

  segments_BT: a number per document of a packed row; padding is a segment of its own. causal: of
  those only itself and earlier ones. window: of those the nearest so many each way, itself
  included; 0: all.
  """
  mask_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
  index_T = jnp.arange(segments_BT.shape[1])
  back_TS = index_T[:, None] - index_T[None]
  return mask_BTS & in_reach(back_TS, causal, window)


def in_reach(back_TS: jax.Array, causal: bool, window: int = 0) -> jax.Array:
  """mask_TS: which distances t − s attention may bridge, as in `self_mask`."""
  reach_TS = back_TS >= 0 if causal else jnp.ones_like(back_TS, bool)
  return reach_TS & (jnp.abs(back_TS) < window) if window else reach_TS
