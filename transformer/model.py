"""Blocks and the decoder-only Transformer, as functional Linen modules."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer import spec
from transformer.attention import Attention
from transformer.config import Config
from transformer.ffn import FFN, Aux
from transformer.layers import Norm, dropout, shard
from transformer.ops.attention import causal_mask
from transformer.ops.product import product
from transformer.params import initializer
from transformer.positions import positions_in_documents, sinusoid


def build(config: Config) -> Decoder:
  """The model a resolved config describes.

  `build(config).apply({'params': params}, tokens_BT)` returns (logits_BTV, Aux).
  """
  return {'decoder': Decoder}[config.model.architecture](config)


class Block(nn.Module):
  """Pre-norm residual block: x + attention(norm(x)), then x + ffn(norm(x)) (Xiong et al. 2020)."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    mask_BTS: jax.Array,
    positions_BT: jax.Array,
    noise_B: jax.Array | None,
    layer: jax.Array,
  ) -> tuple[jax.Array, Aux]:
    m, f = self.config.model, self.config.ffn
    if noise_B is not None:
      noise_B = jax.vmap(lambda key: jax.random.fold_in(key, layer))(noise_B)
    attention = Attention(
      m.num_heads, m.head_dim, m.positions, m.bias, m.num_layers, name='attention'
    )
    y_BTD = attention(Norm(m.norm, name='attention_norm')(x_BTD), mask_BTS, positions_BT)
    x_BTD += dropout(y_BTD, noise_B, m.dropout, site=0)
    ffn = FFN(f.d_ff, f.activation, f.bias, m.num_layers, name='ffn')
    y_BTD, aux = ffn(Norm(m.norm, name='ffn_norm')(x_BTD))
    x_BTD += dropout(y_BTD, noise_B, m.dropout, site=1)
    return shard(x_BTD, 'BTD'), aux


class Decoder(nn.Module):
  """Decoder-only Transformer with tied embedding (Press & Wolf 2017).

  Layers are stacked along a leading axis of their parameters and run by a scan.
  """

  config: Config

  @nn.compact
  def __call__(
    self,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    noise_B: jax.Array | None = None,
  ) -> tuple[jax.Array, Aux]:
    """Next-token logits.

    tokens_BT: int32 ids. segments_BT: a number per document of a packed row; attention does not
    cross documents, and positions start again. noise_B: a PRNG key per row trains with dropout;
    without it the model evaluates.

    Returns float32 logits_BTV and the layers' Aux, stacked along L.
    """
    m = self.config.model
    length = tokens_BT.shape[1]
    table_VD = Embed(m.vocab_size, m.d_model, name='embed')()
    if segments_BT is None:
      positions_BT = jnp.arange(length)[None]
    else:
      positions_BT = positions_in_documents(segments_BT)
    # √d_model (Vaswani et al. 2017, §3.4): the table is scaled for logits, the stream wants 1.
    # Cast after the look-up, so that backward adds up a frequent token's gradient in float32.
    x_BTD = (table_VD[tokens_BT] * m.d_model**0.5).astype(m.dtype)
    x_BTD += self._position_vectors(positions_BT).astype(m.dtype)
    x_BTD = shard(dropout(x_BTD, _fold(noise_B, m.num_layers), m.dropout, site=0), 'BTD')
    layers = nn.scan(
      Block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
      length=m.num_layers,
      unroll=m.num_layers if m.unroll else 1,
    )(self.config, name='layers')
    mask_BTS = causal_mask(length, segments_BT)
    x_BTD, aux = layers(x_BTD, mask_BTS, positions_BT, noise_B, jnp.arange(m.num_layers))
    x_BTD = Norm(m.norm, name='final_norm')(x_BTD)
    logits_BTV = product('btd,vd->btv', x_BTD, table_VD, out='float32')
    return shard(logits_BTV, 'BTV'), aux

  def _position_vectors(self, positions_BT: jax.Array) -> jax.Array:
    """What is added to the embedding for its position: (B, T, D), or zeros that broadcast."""
    m = self.config.model
    kind = spec.parse('model.positions', m.positions).variant
    if kind == 'sinusoidal':
      return sinusoid(positions_BT, m.d_model)
    if kind == 'learned':
      table = PositionTable(self.config.data.seq_len, m.d_model, name='positions')
      return table()[positions_BT]
    return jnp.zeros((1, 1, 1))


class Embed(nn.Module):
  """The token embedding, shared by input and logits: table_VD."""

  vocab_size: int
  d_model: int

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('table', initializer('embed/table'), (self.vocab_size, self.d_model))


class PositionTable(nn.Module):
  """Learned position vectors: table_TD."""

  length: int
  d_model: int

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('table', initializer('positions/table'), (self.length, self.d_model))


def _fold(noise_B: jax.Array | None, data: int) -> jax.Array | None:
  if noise_B is None:
    return None
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(noise_B)
