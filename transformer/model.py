"""Blocks and the decoder-only Transformer, as functional Linen modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from transformer import count, parametrization, spec
from transformer.attention import Attention
from transformer.config import Config
from transformer.ffn import FFN, Aux
from transformer.layers import Norm, drop_branch, dropout, keep, observe, shard
from transformer.ops.attention import causal_mask, soft_cap
from transformer.ops.product import product
from transformer.params import initializer
from transformer.positions import alibi, positions_in_documents, relative_buckets, sinusoid


def build(config: Config) -> Decoder:
  """The model a resolved config describes.

  `build(config).apply({'params': params}, tokens_BT)` returns (logits_BTV, Aux).
  """
  return {'decoder': Decoder}[config.model.architecture](config)


class Block(nn.Module):
  """Attention and a feed-forward network, each a residual branch.

  With x the residual stream and f a branch: pre-norm x + f(norm(x)) (Xiong et al. 2020), post-norm
  norm(x + f(x)) (Vaswani et al. 2017), sandwich x + norm(f(norm(x))) (Ding et al. 2021). Parallel
  branches read the same input and are added together (Wang & Komatsuzaki 2021, GPT-J).

  d_ff: hidden width; 0: no feed-forward network. The config's num_heads 0: no attention.
  """

  config: Config
  d_ff: int

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    context: Context,
    layer: jax.Array,
  ) -> tuple[jax.Array, Aux]:
    m = self.config.model
    noise_B = _fold(context.noise_B, layer)
    aux = Aux({}, {})

    def attend(x_BTD: jax.Array) -> jax.Array:
      return _attention(self.config)(
        x_BTD, context.mask_BTS, context.positions_BT, context.bias_NTS
      )

    def feed(x_BTD: jax.Array) -> jax.Array:
      nonlocal aux
      if context.shared_ffn is None:
        y_BTD, aux = _feed_forward(self.config, self.d_ff, name='ffn')(x_BTD, noise_B)
      else:
        wanted = [c for c in ('observed', 'diagnostics') if self.is_mutable_collection(c)]
        network = _feed_forward(self.config, self.d_ff, parent=None)
        weights = {'params': context.shared_ffn}
        (y_BTD, aux), seen = network.apply(weights, x_BTD, noise_B, mutable=wanted)
        for collection, values in seen.items():
          keep(self, collection, 'ffn', values)
      return y_BTD

    branches = {'attention': attend} if m.num_heads else {}
    branches |= {'ffn': feed} if self.d_ff else {}
    stages = (
      {'block': branches} if m.parallel_branches else {n: {n: f} for n, f in branches.items()}
    )
    for name, members in stages.items():
      x_BTD = self._stage(name, members, x_BTD, noise_B, layer)
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
      site = {'attention': 0, 'ffn': 1}[branch]
      y_BTD = dropout(y_BTD, noise_B, m.dropout, site)
      if m.stochastic_depth:
        rate = m.stochastic_depth * (layer + 1) / m.num_layers
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


@flax.struct.dataclass
class Context:
  """What all layers share. bias_NTS, noise_B and shared_ffn may be None."""

  mask_BTS: jax.Array
  positions_BT: jax.Array
  bias_NTS: jax.Array | None
  noise_B: jax.Array | None
  shared_ffn: dict | None


def _attention(config: Config) -> Attention:
  m = config.model
  return Attention(
    num_heads=m.num_heads,
    head_dim=m.head_dim,
    num_kv_heads=m.num_kv_heads,
    positions=m.positions,
    qk_norm=m.qk_norm,
    qkv_bias=m.bias or m.qkv_bias,
    out_bias=m.bias,
    out_init=m.out_init,
    scale=parametrization.attention_scale(config),
    cap=m.attention_cap,
    num_layers=m.num_layers,
    name='attention',
  )


def _feed_forward(config: Config, d_ff: int, **module: Any) -> FFN:
  f = config.ffn
  return FFN(
    d_ff=d_ff,
    activation=f.activation,
    bias=f.bias,
    hidden_layers=f.hidden_layers,
    dropout=f.dropout,
    down_init=f.down_init,
    num_layers=config.model.num_layers,
    **module,
  )


class Decoder(nn.Module):
  """Decoder-only Transformer.

  Neighbouring layers of equal shape are stacked along a leading axis of their parameters and run by
  a scan.
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

    Returns float32 logits_BTV and the layers' Aux, stacked along the layers that have an entry.
    """
    m, length = self.config.model, tokens_BT.shape[1]
    table_VD = Leaves(self.config, name='embed')()['table']
    if segments_BT is None:
      positions_BT = jnp.arange(length)[None]
    else:
      positions_BT = positions_in_documents(segments_BT)
    x_BTD = self._embed(table_VD, tokens_BT, positions_BT)
    x_BTD = shard(dropout(x_BTD, _fold(noise_B, m.num_layers), m.dropout, site=0), 'BTD')
    observe(self, 'embedding', x_BTD)
    context = Context(
      mask_BTS=causal_mask(length, segments_BT),
      positions_BT=positions_BT,
      bias_NTS=self._score_bias(length),
      noise_B=noise_B,
      shared_ffn=self._shared_ffn(x_BTD),
    )
    x_BTD, aux = self._layers(x_BTD, context)
    if m.norm_placement != 'post':
      x_BTD = Norm(m.norm, name='final_norm')(x_BTD)
      observe(self, 'final_normed', x_BTD)
    return self._logits(x_BTD, table_VD), aux

  def _layers(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, Aux]:
    found = []
    for group in count.groups(self.config):
      layers = nn.scan(
        Block,
        variable_axes={'params': 0, 'observed': 0, 'diagnostics': 0},
        split_rngs={'params': True},
        in_axes=(nn.broadcast, 0),
        length=group.size,
        unroll=group.size if self.config.model.unroll else 1,
      )(self.config, group.d_ff, name=group.name)
      x_BTD, aux = layers(x_BTD, context, group.first + jnp.arange(group.size))
      found.append(aux)
    return x_BTD, Aux(*(_joined(dicts) for dicts in zip(*found, strict=True)))

  def _embed(self, table_VD: jax.Array, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """What enters the first layer: the tokens' vectors, and their positions' where there are."""
    m = self.config.model
    # √d_model (Vaswani et al. 2017, §3.4): the table is scaled for logits, the stream wants 1.
    scale = m.d_model**0.5 if m.embedding_scale == 'sqrt_d_model' else 1.0
    # Cast after the look-up, so that backward adds up a frequent token's gradient in float32.
    x_BTD = (table_VD[tokens_BT] * scale).astype(m.dtype)
    kind = spec.parse('model.positions', m.positions).variant
    if kind == 'sinusoidal':
      return x_BTD + sinusoid(positions_BT, m.d_model).astype(m.dtype)
    if kind == 'learned':  # drawn as tokens are, so scaled as they are
      table_TD = Leaves(self.config, name='positions')()['table']
      return x_BTD + (table_TD[positions_BT] * scale).astype(m.dtype)
    return x_BTD

  def _score_bias(self, length: int) -> jax.Array | None:
    """What positions add to the scores of every layer: bias_NTS."""
    m = self.config.model
    variant = spec.parse('model.positions', m.positions)
    if variant.variant == 'alibi':
      return alibi(length, m.num_heads)
    if variant.variant == 'relative':
      bucket_TS = relative_buckets(length, variant.buckets, variant.max_distance)
      bias_UN = Leaves(self.config, name='positions')()['bias']
      return bias_UN[bucket_TS].transpose(2, 0, 1)
    return None

  def _shared_ffn(self, x_BTD: jax.Array) -> dict | None:
    """The weights of the one FFN that all layers use, where there is such a one."""
    if not self.config.ffn.shared:
      return None
    network = _feed_forward(self.config, self.config.ffn.d_ff, parent=None)
    return self.param('ffn', lambda key: network.init(key, x_BTD[:1, :1])['params'])

  def _logits(self, x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    m, unembed = self.config.model, Leaves(self.config, name='unembed')()
    x_BTD *= parametrization.logit_scale(self.config)
    logits_BTV = product('btd,vd->btv', x_BTD, unembed.get('table', table_VD), out='float32')
    logits_BTV = soft_cap(logits_BTV + unembed.get('bias', 0.0), m.logit_cap)
    observe(self, 'logits', logits_BTV)
    return shard(logits_BTV, 'BTV')


class Leaves(nn.Module):
  """The parameters that stand under this module's name in count.shapes: leaf -> array."""

  config: Config

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    found = {}
    for path, shape in count.shapes(self.config).items():
      owner, _, leaf = path.partition('/')
      if owner == self.name:
        found[leaf] = self.param(leaf, initializer(path), shape)
    return found


def uses_noise(config: Config) -> bool:
  """Whether training a resolved config draws anything."""
  m = config.model
  return any((m.dropout, m.stochastic_depth, config.ffn.dropout))


def _joined(dicts: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
  names = dict.fromkeys(name for found in dicts for name in found)
  return {name: jnp.concatenate([d[name] for d in dicts if name in d]) for name in names}


def _fold(noise_B: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
  if noise_B is None:
    return None
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(noise_B)
