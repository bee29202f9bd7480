"""Multi-head attention: of a sequence on itself, or on another one."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer import count, spec
from transformer.config import Config
from transformer.layers import Norm, keep, observe, shard
from transformer.ops import cudnn
from transformer.ops.attention import attention, cached, mix, scores, weights
from transformer.ops.product import Product, product
from transformer.params import initializer
from transformer.positions import Turn, rotate

TURNED = 'key_turned'


class Attention(nn.Module):
  """Multi-head attention (Vaswani et al. 2017, §3.2.2).

  num_kv_heads: heads of keys and values, each shared by num_heads / num_kv_heads queries
  (Ainslie et al. 2023); 0: num_heads. v_head_dim: width W of the values, d_v; 0: head_dim.
  qk_norm: RMSNorm of queries and keys over H (Henry et al. 2020). qkv_bias, out_bias: biases.
  out_init: factor on the initial deviation of `out`. scale: of the scores; 0: 1/√H. cap: of the
  scores. branches: how many write into the residual stream that it writes to. causal: the mask
  hides all that is ahead, which whole sequences make use of. cross: keys and values come from
  another sequence. product: the matrix product to use.
  """

  num_heads: int
  head_dim: int
  num_kv_heads: int = 0
  v_head_dim: int = 0
  qk_norm: bool = False
  qkv_bias: bool = False
  out_bias: bool = False
  out_init: float = 1.0
  scale: float = 0.0
  cap: float = 0.0
  branches: int = 0
  causal: bool = False
  cross: bool = False
  product: Product = product

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    mask_BTS: jax.Array,
    turn: Turn | None = None,
    bias_NTS: jax.Array | None = None,
    memory_BSD: jax.Array | None = None,
    slot: jax.Array | None = None,
    weights_BNTS: jax.Array | None = None,
  ) -> jax.Array:
    """turn: of queries and keys, by rotary positions. bias_NTS: added to the scores. Returns y_BTD.

    memory_BSD: of cross-attention, the sequence looked at. weights_BNTS: what each query takes of
    each value, in place of the softmax of scores.

    slot: where the keys and values of these tokens go in the collection 'cache', (B · K, S, ·) that
    the caller made; S are then its slots. Cross-attention keeps all keys and values of a memory
    that is given, and without one reads what it kept. Keys under the name TURNED are (B · K, H, S).
    """
    y_BTNW = self._mixed(x_BTD, mask_BTS, turn, bias_NTS, memory_BSD, slot, weights_BNTS)
    observe(self, 'mixed', y_BTNW)
    init = initializer('attention/out', self.branches, self.out_init)
    out_NWD = self.param('out', init, (*y_BTNW.shape[2:], x_BTD.shape[-1]))
    y_BTD = self.product('btnw,nwd->btd', y_BTNW, out_NWD)
    if self.out_bias:
      bias_D = self.param('out_bias', initializer('attention/out_bias'), x_BTD.shape[-1:])
      y_BTD += bias_D.astype(y_BTD.dtype)
    observe(self, 'out', y_BTD)
    return shard(y_BTD, 'BTD')

  def _mixed(self, x_BTD, mask_BTS, turn, bias_NTS, memory_BSD, slot, weights_BNTS) -> jax.Array:
    """The heads' values, mixed over positions."""
    query_BTNH = self._project('query', 'BTNH', x_BTD, self.num_heads, self.head_dim)
    if self.qk_norm:
      query_BTNH = Norm('rmsnorm', 'query_norm/scale', name='query_norm')(query_BTNH)
    query_BTNH = _turned(query_BTNH, turn)
    how = dict(scale=self.scale or self.head_dim**-0.5, bias_NTS=bias_NTS, cap=self.cap)
    read_BSD = memory_BSD if self.cross else x_BTD
    found = self._keys_and_values(read_BSD, turn) if read_BSD is not None else ()
    if slot is not None:
      turned = self.has_variable('cache', TURNED)
      names = (TURNED if turned else 'key', 'value')
      for name, new in zip(names, found, strict=False):
        self._remember(name, new, slot)
      kept = (self.get_variable('cache', name) for name in names)
      return cached(query_BTNH, *kept, mask_BTS, **how, turned=turned)
    key_BSKH, value_BSKW = found
    if weights_BNTS is not None:
      return mix(weights_BNTS.astype(value_BSKW.dtype), value_BSKW)
    if self.is_mutable_collection('observed'):  # a fast path may never hold the scores
      scores_BNTS = scores(query_BTNH, key_BSKH, **how)
      observe(self, 'scores', jnp.where(mask_BTS[:, None], scores_BNTS, 0.0))
    if self.is_mutable_collection('internals'):
      keep(self, 'internals', 'weights', weights(query_BTNH, key_BSKH, mask_BTS, **how))
    return attention(query_BTNH, key_BSKH, value_BSKW, mask_BTS, **how, causal=self.causal)

  def _keys_and_values(self, x_BSD: jax.Array, turn: Turn | None) -> tuple[jax.Array, jax.Array]:
    heads = self.num_kv_heads or self.num_heads
    key_BSKH = self._project('key', 'BSKH', x_BSD, heads, self.head_dim)
    value_BSKW = self._project('value', 'BSKW', x_BSD, heads, self.v_head_dim or self.head_dim)
    if self.qk_norm:
      key_BSKH = Norm('rmsnorm', 'key_norm/scale', name='key_norm')(key_BSKH)
    return _turned(key_BSKH, turn), value_BSKW

  def _remember(self, name: str, new_BSKH: jax.Array, slot: jax.Array) -> None:
    """Puts keys or values where those of earlier calls are, from `slot` on."""
    rows_RSH = new_BSKH.swapaxes(1, 2).reshape(-1, new_BSKH.shape[1], new_BSKH.shape[3])
    new = rows_RSH.astype(jnp.float32)  # XLA would convert a whole cache in bfloat16 on CPU
    new, place = (new.swapaxes(1, 2), (0, 0, slot)) if name == TURNED else (new, (0, slot, 0))
    if not self.cross:
      new = jax.lax.dynamic_update_slice(self.get_variable('cache', name), new, place)
    self.put_variable('cache', name, new)

  def _project(
    self, name: str, letters: str, x_BTD: jax.Array, heads: int, width: int
  ) -> jax.Array:
    shape = (x_BTD.shape[-1], heads, width)
    weight = self.param(name, initializer(f'attention/{name}'), shape)
    y = self.product('btd,dnh->btnh', x_BTD, weight)
    if self.qkv_bias:
      bias = self.param(f'{name}_bias', initializer(f'attention/{name}_bias'), shape[1:])
      y += bias.astype(y.dtype)
    observe(self, name, y)
    return shard(y, letters)


def _turned(x_BTNH: jax.Array, turn: Turn | None) -> jax.Array:
  return x_BTNH if turn is None else rotate(x_BTNH, turn)


def shapes(config: Config) -> set[cudnn.Shape]:
  """Those of attention within sequences of a resolved config, if nothing is added to scores."""
  m, found = config.model, set()
  if (
    not m.num_heads
    or m.attention_cap
    or spec.parse('model.positions', m.positions).acts_on == 'scores'
  ):
    return found
  for group in count.groups(config):
    length = count.length(config, group)
    kv_heads = m.num_kv_heads or m.num_heads
    found.add(cudnn.Shape(length, m.num_heads, m.head_dim, length, kv_heads, m.dtype))
  return found
