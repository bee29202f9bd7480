"""What the three models have in common: embedding, stacks of blocks, logits."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from transformer import count, parametrization, spec
from transformer.activations import activate
from transformer.block import Block, Context
from transformer.config import Config
from transformer.ffn import Aux, feed_forward
from transformer.layers import Norm, dropout, fold, keep, observe, shard
from transformer.ops.attention import self_mask
from transformer.ops.cast import cast
from transformer.ops.cross_entropy import Unembedding, finished, is_fused
from transformer.ops.product import by_weight, product
from transformer.params import initializer
from transformer.positions import (
  Turn,
  alibi,
  positions_in_documents,
  relative_buckets,
  sinusoid,
  turn,
)

TABLE_DV = 'unembed_DV'  # a copy of the logits' table as a product of few rows reads it fastest


@flax.struct.dataclass
class Slots:
  """Where the tokens of a call stand among all whose keys and values are kept (see decode/).

  slot: of the first of them; the others follow. mask_BTS: the slots that each may look at.
  positions_BT: of each in its sequence. step_T, step_S: which step each token and each slot belongs
  to: distances are differences of these.
  """

  slot: jax.Array
  mask_BTS: jax.Array
  positions_BT: jax.Array
  step_T: jax.Array
  step_S: jax.Array


class Stacks(nn.Module):
  """What the models have in common.

  Neighbouring layers of equal shape are stacked along a leading axis of their parameters and run by
  a scan. by_layer: they are not, but each has its own parameters, as decoding wants them. logits:
  off, an Unembedding takes their place where a loss is made of it directly.
  """

  config: Config
  by_layer: bool = False
  logits: bool = True

  def _run(self, stack: str, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, Aux]:
    """The stream after all layers of a stack, normed unless norms come last in each anyway."""
    m, found = self.config.model, []
    for group in (g for g in count.groups(self.config) if g.stack == stack):
      if self.by_layer:
        for layer in range(group.first, group.first + group.size):
          block = Block(self.config, group, by_weight, name=layer_name(stack, layer))
          x_BTD, aux = block(x_BTD, context, jnp.int32(layer))
          found.append(jax.tree.map(lambda x: x[None], aux))
        continue
      layers = nn.scan(
        _kept_less(Block, m.remat, m.unroll),
        variable_axes=dict.fromkeys(('params', 'observed', 'diagnostics', 'internals'), 0),
        split_rngs={'params': True},
        in_axes=(nn.broadcast, 0),
        length=group.size,
        unroll=group.size if m.unroll else 1,
      )(self.config, group, name=group.name)
      x_BTD, aux = layers(x_BTD, context, group.first + jnp.arange(group.size))
      found.append(aux)
    if m.norm_placement != 'post':
      name = 'encoder' if stack == 'encoder_layers' else 'final'
      x_BTD = Norm(m.norm, name=f'{name}_norm')(x_BTD)
      observe(self, f'{name}_normed', x_BTD)
    return x_BTD, Aux(*(joined(dicts) for dicts in zip(*found, strict=True)))

  def _embed(
    self,
    table_VD: jax.Array,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    noise_B: jax.Array | None,
    types_BT: jax.Array | None = None,
    side: str = '',
  ) -> jax.Array:
    """What enters the first layer: the tokens' vectors, and their positions' where there are.

    side: 'source_' before the names of what a source has of its own.
    """
    m = self.config.model
    # √d_model (Vaswani et al. 2017, §3.4): the table is scaled for logits, the stream wants 1.
    scale = m.d_model**0.5 if m.embedding_scale == 'sqrt_d_model' else 1.0
    # Cast after the look-up, so that backward adds up a frequent token's gradient in float32.
    # Of whole rows: where each device has some columns of each, XLA would look up the tokens of all
    # devices there, and bring the parts together all-to-all.
    x_BTD = cast(shard(table_VD, 'VD')[jnp.maximum(tokens_BT, 0)] * scale, m.dtype)
    kind = spec.parse('model.positions', m.positions).variant
    if kind == 'sinusoidal':
      x_BTD += sinusoid(positions_BT, m.d_model).astype(m.dtype)
    if kind == 'learned':  # drawn as tokens are, so scaled as they are
      table_TD = Leaves(self.config, name=f'{side}positions')()['table']
      x_BTD += (shard(table_TD, 'TD')[positions_BT] * scale).astype(m.dtype)
    if m.token_types:
      table_AD = Leaves(self.config, name='types')()['table']
      types_BT = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
      x_BTD += (shard(table_AD, 'AD')[types_BT] * scale).astype(m.dtype)
    if m.embedding_norm:
      x_BTD = Norm(m.norm, name=f'{side}embed_norm')(x_BTD)
    x_BTD = shard(dropout(x_BTD, noise_B, m.dropout, site=0), 'BTD')
    observe(self, f'{side}embedding', x_BTD)
    keep(self, 'internals', f'{side}embedding', x_BTD)
    return x_BTD

  def _score_bias(self, back_TS: jax.Array, causal: bool, side: str = '') -> jax.Array | None:
    """What positions add to the scores of every layer, of distances t − s: bias_NTS."""
    m = self.config.model
    variant = spec.parse('model.positions', m.positions)
    if variant.variant == 'alibi':
      return alibi(back_TS, m.num_heads)
    if variant.variant == 'relative':
      bucket_TS = relative_buckets(back_TS, variant.buckets, variant.max_distance, causal)
      bias_UN = Leaves(self.config, name=f'{side}positions')()['bias']
      return bias_UN[bucket_TS].transpose(2, 0, 1)
    return None

  def _turn(self, positions_BT: jax.Array) -> Turn | None:
    """By which positions turn queries and keys, the same for every layer."""
    m, variant = self.config.model, spec.parse('model.positions', self.config.model.positions)
    return turn(positions_BT, m.head_dim, variant.base) if variant.variant == 'rotary' else None

  def _shared_ffn(self) -> dict | None:
    """The weights of the one FFN that all layers use, where there is such a one."""
    if not self.config.ffn.shared:
      return None
    network = feed_forward(self.config, count.groups(self.config)[0], parent=None)
    x_BTD = jnp.zeros((1, 1, self.config.model.d_model), self.config.model.dtype)
    return self.param('ffn', lambda key: network.init(key, x_BTD)['params'])

  def _sequence(
    self,
    stack: str,
    table_VD: jax.Array,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None,
    noise_B: jax.Array | None,
    causal: bool,
    types_BT: jax.Array | None = None,
    **context: object,
  ) -> tuple[jax.Array, Aux]:
    """The stream of a stack over whole sequences. context: further fields of a Context."""
    m, length = self.config.model, tokens_BT.shape[1]
    encoder = stack == 'encoder_layers'
    side, before = ('source_', m.num_layers + 1) if encoder else ('', 0)
    if segments_BT is None:
      segments_BT = jnp.zeros_like(tokens_BT)
    segments_BT = jnp.where(tokens_BT < 0, -1, segments_BT)
    positions_BT = positions_in_documents(segments_BT)
    # The noise of layer i is folded with i, that of the embedding with their number.
    own_B = fold(noise_B, before + count.depth(self.config, stack))
    x_BTD = self._embed(table_VD, tokens_BT, positions_BT, own_B, types_BT, side)
    index_T = jnp.arange(length)
    found = Context(
      ids_BT=tokens_BT,
      mask_BTS=self_mask(segments_BT, causal, m.attention_window),
      turn=self._turn(positions_BT),
      bias_NTS=self._score_bias(index_T[:, None] - index_T[None], causal, side),
      noise_B=fold(noise_B, before) if before else noise_B,
      **context,
    )
    return self._run(stack, x_BTD, found)

  def _next(
    self, table_VD: jax.Array, tokens_BT: jax.Array, slots: Slots, **context: object
  ) -> tuple[jax.Array, Aux]:
    """The stream of a decoder over tokens that follow others whose keys and values are kept."""
    x_BTD = self._embed(table_VD, tokens_BT, slots.positions_BT, None)
    back_TS = slots.step_T[:, None] - slots.step_S[None]
    found = Context(
      ids_BT=tokens_BT,
      mask_BTS=slots.mask_BTS,
      turn=self._turn(slots.positions_BT),
      bias_NTS=self._score_bias(back_TS, causal=True),
      slot=slots.slot,
      **context,
    )
    return self._run('layers', x_BTD, found)

  def _answer(self, x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array | Unembedding:
    """Logits, or what they are made of where `logits` is off."""
    m, unembed = self.config.model, Leaves(self.config, name='unembed')()
    if m.head == 'transform':
      x_BTD = self._transformed(x_BTD)
    x_BTD *= parametrization.logit_scale(self.config)
    bias_V = unembed.get('bias')
    rows = x_BTD.shape[0] * x_BTD.shape[1]
    if not self.logits and is_fused(rows, m.vocab_size):
      return Unembedding(x_BTD, unembed.get('table', table_VD), bias_V, m.logit_cap)
    if self.by_layer:
      table_DV = self.get_variable('params', TABLE_DV)
      logits_BTV = finished(by_weight('btd,dv->btv', x_BTD, table_DV), bias_V, m.logit_cap)
    else:
      table_VD = unembed.get('table', table_VD)
      logits_BTV = Unembedding(x_BTD, table_VD, bias_V, m.logit_cap).logits()
    observe(self, 'logits', logits_BTV)
    return shard(logits_BTV, 'BTV')

  def _transformed(self, x_BTD: jax.Array) -> jax.Array:
    """What BERT's head does before the logits (Devlin et al. 2019, in their code)."""
    m, head = self.config.model, Leaves(self.config, name='head')()
    dense = by_weight if self.by_layer else product
    x_BTO = dense('btd,do->bto', x_BTD, head['transform'])
    x_BTO += head['transform_bias'].astype(x_BTO.dtype)
    x_BTO = activate(spec.parse('ffn.activation', self.config.ffn.activation), [x_BTO], {})
    return Norm(m.norm, name='head_norm')(x_BTO)


class Leaves(nn.Module):
  """The parameters that stand under this module's name in count.shapes: leaf -> array."""

  config: Config

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    found = {}
    for path, shape in count.shapes(self.config).items():
      owner, _, leaf = path.partition('/')
      if owner == self.name:
        # NumPy's, as a loaded checkpoint has them, take no traced index.
        found[leaf] = jnp.asarray(self.param(leaf, initializer(path), shape))
    return found


def layer_name(stack: str, layer: int) -> str:
  """The name of one layer's parameters where layers are not stacked."""
  return f'{stack}_at_{layer}'


def joined(dicts: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
  names = dict.fromkeys(name for found in dicts for name in found)
  return {name: jnp.concatenate([d[name] for d in dicts if name in d]) for name in names}


def _kept_less(block: type[Block], remat: str, unroll: bool) -> type[Block]:
  """A block of which backward finds less kept and computes the rest again (Chen et al. 2016)."""
  if remat == 'none':
    return block
  policies = jax.checkpoint_policies
  policy = policies.dots_with_no_batch_dims_saveable if remat == 'dots' else None
  return nn.remat(block, prevent_cse=unroll, policy=policy)
