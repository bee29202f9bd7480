"""The block that encoders and decoders are made of."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax

from transformer import count, parametrization
from transformer.attention import Attention
from transformer.config import Config
from transformer.ffn import Aux, feed_forward
from transformer.layers import Norm, drop_branch, dropout, fold, keep, observe, shard
from transformer.moe import MoE
from transformer.ops.product import Product, product
from transformer.positions import Turn

_SITES = {
  'attention': 0,
  'ffn': 1,
  'cross_attention': 5,
}  # of noise; the FFN's own is 2


@flax.struct.dataclass
class Context:
  """What all layers of a stack share.

  ids_BT: of the tokens, below 0 for padding. mask_BTS, bias_NTS: which keys attention sees, what is
  added to its scores. turn: of queries and keys, by rotary positions. noise_B: a key per row, in
  training. shared_ffn: the weights of one FFN for all. memory_BSD: what cross-attention looks at,
  memory_mask_BTS where. slot: where keys and values are kept. All from turn on may be None.
  """

  ids_BT: jax.Array
  mask_BTS: jax.Array
  turn: Turn | None = None
  bias_NTS: jax.Array | None = None
  noise_B: jax.Array | None = None
  shared_ffn: dict | None = None
  memory_BSD: jax.Array | None = None
  memory_mask_BTS: jax.Array | None = None
  slot: jax.Array | None = None


class Block(nn.Module):
  """Attention, where there is a source attention to it, and a feed-forward network, each a branch.

  With x the residual stream and f a branch: pre-norm x + f(norm(x)) (Xiong et al. 2020), post-norm
  norm(x + f(x)) (Vaswani et al. 2017), sandwich x + norm(f(norm(x))) (Ding et al. 2021). Parallel
  branches read the same input and are added together (Wang & Komatsuzaki 2021, GPT-J).
  """

  config: Config
  group: count.Group  # the layers it is one of
  product: Product = product

  @nn.compact
  def __call__(self, x_BTD: jax.Array, context: Context, layer: jax.Array) -> tuple[jax.Array, Aux]:
    """layer: its number in the stack. Returns the stream after it."""
    m = self.config.model
    noise_B = fold(context.noise_B, layer)
    aux = Aux({}, {})

    def attend(x_BTD: jax.Array) -> jax.Array:
      read = _attention(self.config, self.group, 'attention', self.product)
      return read(x_BTD, context.mask_BTS, context.turn, context.bias_NTS, slot=context.slot)

    def attend_to_memory(x_BTD: jax.Array) -> jax.Array:
      read = _attention(self.config, self.group, 'cross_attention', self.product)
      where = dict(memory_BSD=context.memory_BSD, slot=context.slot)
      return read(x_BTD, context.memory_mask_BTS, **where)

    def feed(x_BTD: jax.Array) -> jax.Array:
      nonlocal aux
      if self.group.experts:
        network = MoE(self.config, self.group, product=self.product, name='ffn')
        y_BTD, aux = network(x_BTD, context.ids_BT, layer, noise_B)
      elif context.shared_ffn is None:
        network = feed_forward(self.config, self.group, product=self.product, name='ffn')
        y_BTD, aux = network(x_BTD, noise_B)
      else:
        wanted = [c for c in ('observed', 'diagnostics') if self.is_mutable_collection(c)]
        network = feed_forward(self.config, self.group, product=self.product, parent=None)
        weights = {'params': context.shared_ffn}
        (y_BTD, aux), seen = network.apply(weights, x_BTD, noise_B, mutable=wanted)
        for collection, values in seen.items():
          keep(self, collection, 'ffn', values)
      return y_BTD

    functions = {'attention': attend, 'cross_attention': attend_to_memory, 'ffn': feed}
    branches = {name: functions[name] for name in count.branch_names(self.config, self.group)}
    stages = (
      {'block': branches} if m.parallel_branches else {n: {n: f} for n, f in branches.items()}
    )
    for name, members in stages.items():
      x_BTD = self._stage(name, members, x_BTD, noise_B, layer)
    keep(self, 'internals', 'stream', x_BTD)
    return x_BTD, aux

  def _stage(
    self,
    name: str,
    branches: dict[str, Callable[[jax.Array], jax.Array]],
    x_BTD: jax.Array,
    noise_B: jax.Array | None,
    layer: jax.Array,
  ) -> jax.Array:
    """The stream after branches that read the same input."""
    m = self.config.model
    post, sandwich = m.norm_placement == 'post', m.norm_placement == 'sandwich'
    inner_BTD = x_BTD if post else self._norm(f'{name}_norm', x_BTD)
    keep(self, 'diagnostics', 'stream', x_BTD)
    for branch, function in branches.items():
      y_BTD = function(inner_BTD)
      if sandwich:
        y_BTD = self._norm(f'{branch}_out_norm', y_BTD)
      if branch == 'ffn':
        keep(self, 'diagnostics', 'update', y_BTD)
      site = _SITES[branch]
      y_BTD = dropout(y_BTD, noise_B, m.dropout, site)
      if m.stochastic_depth:
        rate = m.stochastic_depth * (layer + 1) / count.depth(self.config, self.group.stack)
        y_BTD = drop_branch(y_BTD, noise_B, rate, site=3 + site)
      x_BTD += y_BTD
    if post:
      x_BTD = self._norm(f'{name}_norm', x_BTD)
    observe(self, f'stream_{name}', x_BTD)
    return shard(x_BTD, 'BTD')

  def _norm(self, name: str, x_BTD: jax.Array) -> jax.Array:
    y_BTD = Norm(self.config.model.norm, name=name)(x_BTD)
    observe(self, f'{name}ed', y_BTD)  # 'attention_normed': its own name is the module's
    return y_BTD


def _attention(config: Config, group: count.Group, name: str, product: Product) -> Attention:
  m = config.model
  return Attention(
    num_heads=m.num_heads,
    head_dim=m.head_dim,
    num_kv_heads=m.num_kv_heads,
    v_head_dim=m.v_head_dim,
    qk_norm=m.qk_norm,
    qkv_bias=m.bias or m.qkv_bias,
    out_bias=m.bias,
    out_init=m.out_init,
    scale=parametrization.attention_scale(config),
    cap=m.attention_cap,
    branches=count.branches(config, group.stack),
    causal=name == 'attention' and group.stack == 'layers' and m.architecture != 'encoder',
    cross=name == 'cross_attention',
    product=product,
    name=name,
  )
