"""Multi-head self-attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer import spec
from transformer.layers import Norm, observe, shard
from transformer.ops.attention import attention, scores
from transformer.ops.product import product
from transformer.params import initializer
from transformer.positions import rotate


class Attention(nn.Module):
  """Multi-head attention (Vaswani et al. 2017, §3.2.2) of a sequence on itself.

  num_kv_heads: heads of keys and values, each shared by num_heads / num_kv_heads queries
  (Ainslie et al. 2023); 0: num_heads. positions: a variant of model.positions; only rotary acts
  here. qk_norm: RMSNorm of queries and keys over H (Henry et al. 2020). qkv_bias, out_bias: biases.
  out_init: factor on the initial deviation of `out`. scale: of the scores; 0: 1/√H. cap: of the
  scores. num_layers: depth of the residual stream it writes to.
  """

  num_heads: int
  head_dim: int
  num_kv_heads: int = 0
  positions: str = 'rotary'
  qk_norm: bool = False
  qkv_bias: bool = False
  out_bias: bool = False
  out_init: float = 1.0
  scale: float = 0.0
  cap: float = 0.0
  num_layers: int = 0

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    mask_BTS: jax.Array,
    positions_BT: jax.Array,
    bias_NTS: jax.Array | None = None,
  ) -> jax.Array:
    """positions_BT: of rotary. bias_NTS: added to the scores. Returns y_BTD."""
    d_model, kv_heads = x_BTD.shape[-1], self.num_kv_heads or self.num_heads
    query_BTNH = self._project('query', 'BTNH', x_BTD, self.num_heads)
    key_BTKH = self._project('key', 'BTKH', x_BTD, kv_heads)
    value_BTKH = self._project('value', 'BTKH', x_BTD, kv_heads)
    if self.qk_norm:
      query_BTNH = Norm('rmsnorm', 'query_norm/scale', name='query_norm')(query_BTNH)
      key_BTKH = Norm('rmsnorm', 'key_norm/scale', name='key_norm')(key_BTKH)
    variant = spec.parse('model.positions', self.positions)
    if variant.variant == 'rotary':
      query_BTNH = rotate(query_BTNH, positions_BT, variant.base)
      key_BTKH = rotate(key_BTKH, positions_BT, variant.base)
    how = dict(scale=self.scale or self.head_dim**-0.5, bias_NTS=bias_NTS, cap=self.cap)
    mixed_BTNH = attention(query_BTNH, key_BTKH, value_BTKH, mask_BTS, **how)
    if self.is_mutable_collection('observed'):  # a fast path may never hold the scores
      scores_BNTS = scores(query_BTNH, key_BTKH, **how)
      observe(self, 'scores', jnp.where(mask_BTS[:, None], scores_BNTS, 0.0))
    observe(self, 'mixed', mixed_BTNH)
    init = initializer('attention/out', self.num_layers, self.out_init)
    out_NHD = self.param('out', init, (self.num_heads, self.head_dim, d_model))
    y_BTD = product('btnh,nhd->btd', mixed_BTNH, out_NHD)
    if self.out_bias:
      bias_D = self.param('out_bias', initializer('attention/out_bias'), (d_model,))
      y_BTD += bias_D.astype(y_BTD.dtype)
    observe(self, 'out', y_BTD)
    return shard(y_BTD, 'BTD')

  def _project(self, name: str, letters: str, x_BTD: jax.Array, heads: int) -> jax.Array:
    shape = (x_BTD.shape[-1], heads, self.head_dim)
    weight = self.param(name, initializer(f'attention/{name}'), shape)
    y = product('btd,dnh->btnh', x_BTD, weight)
    if self.qkv_bias:
      bias = self.param(f'{name}_bias', initializer(f'attention/{name}_bias'), shape[1:])
      y += bias.astype(y.dtype)
    observe(self, name, y)
    return shard(y, letters)
