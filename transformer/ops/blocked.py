"""Attention a few heads and a block of queries at a time, so that scores stay in cache.

Scores are made again in backward (Dao et al. 2022, FlashAttention, §3.1), and keys that no query of
a block may see for being ahead of it are left out of its products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from transformer.ops.cast import cast
from transformer.ops.product import into_float32

_MASKED = -1e30  # as of the reference
_QUERIES = 64  # of a block; more where there would be more than _BLOCKS
_BLOCKS = 16
_SCORES = 2**18  # of all heads, that a row may have for another to be done beside it


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def blocked(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  value_BSKW: jax.Array,
  mask_BTS: jax.Array,
  scale: float,
  causal: bool,
) -> jax.Array:
  """softmax(q·k · scale) v where mask allows, as `attention.attention` without bias and cap.

  causal: whether the mask hides all keys ahead of a query; S is T then. Where a causal query may
  look nowhere, what it gets is not the reference's, and means as little; no such query gives a
  gradient.
  Returns out_BTNW in the type of the queries.
  """
  return _forward(query_BTNH, key_BSKH, value_BSKW, mask_BTS, scale, causal)[0]


def _forward(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  value_BSKW: jax.Array,
  mask_BTS: jax.Array,
  scale: float,
  causal: bool,
) -> tuple:

  def of_head(query_GTH, key_SH, value_SW, mask_TS) -> tuple[jax.Array, jax.Array]:
    outs, sizes = [], []
    for at, seen in _blocks(query_GTH.shape[1], len(key_SH), causal):
      scores_GTS = scale * into_float32('gth,sh->gts', query_GTH[:, at], key_SH[seen])
      scores_GTS = jnp.where(_part(mask_TS, at, seen), scores_GTS, _MASKED)
      top_GT1 = jnp.max(scores_GTS, axis=-1, keepdims=True)
      weights_GTS = jnp.exp(scores_GTS - top_GT1)
      sum_GT1 = jnp.sum(weights_GTS, axis=-1, keepdims=True)
      mixed_GTW = into_float32('gts,sw->gtw', cast(weights_GTS, value_SW.dtype), value_SW[seen])
      outs.append(cast(mixed_GTW / sum_GT1, query_GTH.dtype))
      sizes.append((top_GT1 + jnp.log(sum_GT1))[..., 0])
    return jnp.concatenate(outs, axis=1), jnp.concatenate(sizes, axis=1)

  heads = _heads(query_BTNH, key_BSKH, value_BSKW)
  out_BKGTW, log_z_BKGT = _each(of_head, heads, mask_BTS)
  out_BTNW = _by_token(out_BKGTW)
  return out_BTNW, (query_BTNH, key_BSKH, value_BSKW, mask_BTS, out_BTNW, log_z_BKGT)


def _backward(scale: float, causal: bool, kept: tuple, g_BTNW: jax.Array) -> tuple:
  """All in products of (keys, queries): only that of the queries sums over a leading dimension."""
  query_BTNH, key_BSKH, value_BSKW, mask_BTS, out_BTNW, log_z_BKGT = kept
  K = key_BSKH.shape[2]
  # Σ_s weight · its gradient, of each query, which the softmax takes off.
  pull_BTN1 = jnp.sum(out_BTNW.astype(jnp.float32) * g_BTNW, axis=-1, keepdims=True)

  def of_head(query_GTH, key_SH, value_SW, g_GTW, log_z_GT, pull_GT1, mask_ST) -> tuple:
    dqueries = []
    dkey_SH, dvalue_SW = (jnp.zeros(x.shape, jnp.float32) for x in (key_SH, value_SW))
    for at, seen in _blocks(query_GTH.shape[1], len(key_SH), causal):
      block_GTH, g = query_GTH[:, at], g_GTW[:, at]
      scores_GST = scale * into_float32('sh,gth->gst', key_SH[seen], block_GTH)
      weights_GST = jnp.exp(scores_GST - log_z_GT[:, None, at])
      weights_GST = jnp.where(_part(mask_ST, seen, at), weights_GST, 0.0)
      dweights_GST = into_float32('sw,gtw->gst', value_SW[seen], g)
      dscores_GST = weights_GST * (dweights_GST - pull_GT1[:, None, at, 0]) * scale
      weights_GST, dscores_GST = (cast(x, key_SH.dtype) for x in (weights_GST, dscores_GST))
      dvalue_SW = dvalue_SW.at[seen].add(
        jnp.sum(into_float32('gst,gtw->gsw', weights_GST, g), axis=0)
      )
      dkey_SH = dkey_SH.at[seen].add(
        jnp.sum(into_float32('gst,gth->gsh', dscores_GST, block_GTH), axis=0)
      )
      dqueries.append(cast(into_float32('gst,sh->gth', dscores_GST, key_SH[seen]), query_GTH.dtype))
    dquery_GTH = jnp.concatenate(dqueries, axis=1)
    return dquery_GTH, cast(dkey_SH, key_SH.dtype)[None], cast(dvalue_SW, value_SW.dtype)[None]

  heads = _heads(query_BTNH, key_BSKH, value_BSKW)
  heads += _by_head(g_BTNW.astype(query_BTNH.dtype), K), log_z_BKGT, _by_head(pull_BTN1, K)
  return *(_by_token(x) for x in _each(of_head, heads, mask_BTS.swapaxes(1, 2))), None


blocked.defvjp(_forward, _backward)


def _each(of_head: Callable, heads: tuple, mask_BTS: jax.Array) -> tuple:
  """`of_head` of all key/value heads of a row at once, and of as many rows as stay in cache.

  heads: arrays (B, K, …). mask_BTS: B or 1 of them.
  """
  of_row = jax.vmap(of_head, in_axes=(*[0] * len(heads), None))
  rows, K, G, T = heads[0].shape[:4]
  at_once = max(1, _SCORES // (K * G * T * heads[1].shape[2]))
  if len(mask_BTS) == 1:
    one = mask_BTS[0]
    return lax.map(lambda row: of_row(*row, one), heads, batch_size=min(rows, at_once))
  return lax.map(lambda row: of_row(*row), (*heads, mask_BTS), batch_size=min(rows, at_once))


def _blocks(T: int, S: int, causal: bool) -> Iterator[tuple[slice, slice]]:
  """Blocks of queries, each with the keys that it may see."""
  size = max(_QUERIES, -(-T // _BLOCKS))
  for begin in range(0, T, size):
    end = min(T, begin + size)
    yield slice(begin, end), slice(0, end if causal else S)


def _part(mask: jax.Array, rows: slice, columns: slice) -> jax.Array:
  """Of a mask, whose dimensions may be 1 for all."""
  rows = rows if mask.shape[0] > 1 else slice(None)
  return mask[rows, columns if mask.shape[1] > 1 else slice(None)]


def _heads(query_BTNH: jax.Array, key_BSKH: jax.Array, value_BSKW: jax.Array) -> tuple:
  """(query_BKGTH, key_BKSH, value_BKSW)."""
  K = key_BSKH.shape[2]
  return _by_head(query_BTNH, K), _by_head(key_BSKH, K)[:, :, 0], _by_head(value_BSKW, K)[:, :, 0]


def _by_head(x_BTNH: jax.Array, K: int) -> jax.Array:
  """(B, K, G, T, H): key/value heads, the queries' heads of each, tokens."""
  B, T, N, H = x_BTNH.shape
  return x_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _by_token(x_BKGTH: jax.Array) -> jax.Array:
  B, K, G, T, H = x_BKGTH.shape
  return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)
