"""Multi-head self-attention."""

from __future__ import annotations

import flax.linen as nn
import jax

from transformer import spec
from transformer.layers import shard
from transformer.ops.attention import attention
from transformer.ops.product import product
from transformer.params import initializer
from transformer.positions import rotate


class Attention(nn.Module):
  """Multi-head attention (Vaswani et al. 2017, §3.2.2) of a sequence on itself.

  positions: a variant of model.positions; only rotary acts here.
  """

  num_heads: int
  head_dim: int
  positions: str = 'rotary'
  bias: bool = False
  num_layers: int = 0

  @nn.compact
  def __call__(self, x_BTD: jax.Array, mask_BTS: jax.Array, positions_BT: jax.Array) -> jax.Array:
    heads = (self.num_heads, self.head_dim)

    def project(name: str) -> jax.Array:
      weight_DNH = self.param(name, initializer(f'attention/{name}'), (x_BTD.shape[-1], *heads))
      y_BTNH = product('btd,dnh->btnh', x_BTD, weight_DNH)
      if self.bias:
        y_BTNH += self.param(f'{name}_bias', initializer(f'attention/{name}_bias'), heads).astype(
          y_BTNH.dtype
        )
      return shard(y_BTNH, 'BTNH')

    query_BTNH, key_BTNH, value_BTNH = project('query'), project('key'), project('value')
    variant = spec.parse('model.positions', self.positions)
    if variant.variant == 'rotary':
      query_BTNH = rotate(query_BTNH, positions_BT, variant.base)
      key_BTNH = rotate(key_BTNH, positions_BT, variant.base)
    mixed_BTNH = attention(query_BTNH, key_BTNH, value_BTNH, mask_BTS)
    init = initializer('attention/out', self.num_layers)
    out_NHD = self.param('out', init, (*heads, x_BTD.shape[-1]))
    y_BTD = product('btnh,nhd->btd', mixed_BTNH, out_NHD)
    if self.bias:
      y_BTD += self.param('out_bias', initializer('attention/out_bias'), x_BTD.shape[-1:]).astype(
        y_BTD.dtype
      )
    return shard(y_BTD, 'BTD')
