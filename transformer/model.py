"""The three Transformers, as functional Linen modules made of the same stacks of blocks.

Ids below 0 are padding: no other token attends to them, and what comes out at their places means
nothing.
"""

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
from transformer.ops.attention import self_mask, soft_cap
from transformer.ops.product import by_weight, product
from transformer.params import initializer
from transformer.positions import alibi, positions_in_documents, relative_buckets, sinusoid


def build(config: Config, by_layer: bool = False) -> Decoder | Encoder | EncoderDecoder:
  """The model a resolved config describes.

  `build(config).apply({'params': params}, tokens_BT)` returns (logits_BTV, Aux) of a decoder or an
  encoder, `.apply({'params': params}, source_BS, target_BT)` of an encoder_decoder. by_layer: on
  parameters as `by_layer` has them.
  """
  kinds = {'decoder': Decoder, 'encoder': Encoder, 'encoder_decoder': EncoderDecoder}
  return kinds[config.model.architecture](config, by_layer)


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


class _Stacks(nn.Module):
  """What the models have in common.

  Neighbouring layers of equal shape are stacked along a leading axis of their parameters and run by
  a scan. by_layer: they are not, but each has its own parameters, as decoding wants them.
  """

  config: Config
  by_layer: bool = False

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
        Block,
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
    return x_BTD, Aux(*(_joined(dicts) for dicts in zip(*found, strict=True)))

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
    x_BTD = (shard(table_VD, 'VD')[jnp.maximum(tokens_BT, 0)] * scale).astype(m.dtype)
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
      positions_BT=positions_BT,
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
      positions_BT=slots.positions_BT,
      bias_NTS=self._score_bias(back_TS, causal=True),
      slot=slots.slot,
      **context,
    )
    return self._run('layers', x_BTD, found)

  def _logits(self, x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    m, unembed = self.config.model, Leaves(self.config, name='unembed')()
    if m.head == 'transform':
      x_BTD = self._transformed(x_BTD)
    x_BTD *= parametrization.logit_scale(self.config)
    if self.by_layer:
      table_DV = self.get_variable('params', TABLE_DV)
      logits_BTV = by_weight('btd,dv->btv', x_BTD, table_DV)
    else:
      logits_BTV = product('btd,vd->btv', x_BTD, unembed.get('table', table_VD), out='float32')
    logits_BTV = soft_cap(logits_BTV + unembed.get('bias', 0.0), m.logit_cap)
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


class Decoder(_Stacks):
  """Decoder-only Transformer (Radford et al. 2018): a token sees itself and those before it."""

  @nn.compact
  def __call__(
    self,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    noise_B: jax.Array | None = None,
    slots: Slots | None = None,
  ) -> tuple[jax.Array, Aux]:
    """Next-token logits.

    tokens_BT: int32 ids. segments_BT: a number per document of a packed row; attention does not
    cross documents, and positions start again. noise_B: a PRNG key per row trains with dropout;
    without it the model evaluates. slots: goes on after tokens whose keys and values are in the
    collection 'cache', and adds those of these.

    Returns float32 logits_BTV and the layers' Aux, stacked along the layers that have an entry.
    """
    table_VD = Leaves(self.config, name='embed')()['table']
    own = dict(shared_ffn=self._shared_ffn())
    if slots is not None:
      x_BTD, aux = self._next(table_VD, tokens_BT, slots, **own)
    else:
      x_BTD, aux = self._sequence('layers', table_VD, tokens_BT, segments_BT, noise_B, True, **own)
    return self._logits(x_BTD, table_VD), aux


class Encoder(_Stacks):
  """Encoder-only Transformer (Devlin et al. 2019): every token sees all of its document."""

  @nn.compact
  def __call__(
    self,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    noise_B: jax.Array | None = None,
    types_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, Aux]:
    """Logits of the token that belongs at each place, from both sides of it.

    types_BT: kinds of tokens, all 0 unless given (model.token_types). Else as of Decoder.
    """
    table_VD = Leaves(self.config, name='embed')()['table']
    x_BTD, aux = self._sequence(
      *('layers', table_VD, tokens_BT, segments_BT, noise_B, False, types_BT),
      shared_ffn=self._shared_ffn(),
    )
    return self._logits(x_BTD, table_VD), aux


class EncoderDecoder(_Stacks):
  """Encoder and decoder (Vaswani et al. 2017): each target token sees the source and those before.

  Its encoder's Aux comes before its decoder's where both have an entry.
  """

  @nn.compact
  def __call__(
    self,
    source_BS: jax.Array,
    target_BT: jax.Array,
    noise_B: jax.Array | None = None,
    memory_BSD: jax.Array | None = None,
    slots: Slots | None = None,
  ) -> tuple[jax.Array, Aux]:
    """Logits of the token after each of the target's: teacher forcing, all places at once.

    memory_BSD: what `SourceEncoder` made of the source, where it is known already. slots: as of
    Decoder; with them and without memory, that of the first such call is read from the cache.
    """
    table_VD, shared = Leaves(self.config, name='embed')()['table'], self._shared_ffn()
    seen = dict(shared_ffn=shared, memory_mask_BTS=(source_BS >= 0)[:, None])
    if slots is not None:
      x_BTD, aux = self._next(table_VD, target_BT, slots, memory_BSD=memory_BSD, **seen)
      return self._logits(x_BTD, table_VD), aux
    auxs = []
    if memory_BSD is None:
      memory_BSD, aux = _encode(self, source_BS, noise_B, table_VD, shared)
      auxs.append(aux)
    x_BTD, aux = self._sequence(
      *('layers', table_VD, target_BT, None, noise_B, True), memory_BSD=memory_BSD, **seen
    )
    auxs.append(aux)
    return self._logits(x_BTD, table_VD), Aux(*(_joined(d) for d in zip(*auxs, strict=True)))


class SourceEncoder(_Stacks):
  """The encoder of an EncoderDecoder, alone, on the same parameters."""

  @nn.compact
  def __call__(self, source_BS: jax.Array) -> jax.Array:
    """memory_BSD of a source."""
    table_VD = Leaves(self.config, name='embed')()['table']
    return _encode(self, source_BS, None, table_VD, self._shared_ffn())[0]


def _encode(
  model: _Stacks,
  source_BS: jax.Array,
  noise_B: jax.Array | None,
  table_VD: jax.Array,
  shared_ffn: dict | None,
) -> tuple[jax.Array, Aux]:
  if not model.config.model.shared_source:
    table_VD = Leaves(model.config, name='source_embed')()['table']
  return model._sequence(
    *('encoder_layers', table_VD, source_BS, None, noise_B, False), shared_ffn=shared_ffn
  )


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


def inspect(config: Config, params: dict, *tokens: jax.Array) -> dict[str, jax.Array]:
  """Logits, attention weights and hidden states of a forward pass without noise.

  tokens: what `build(config)` takes. Returns, of each stack ('layers', before it
  'encoder_layers'): '<stack>/hidden' (L + 1, B, T, D), the stream before the first layer and after
  each; '<stack>/attention' (L, B, N, T, S), and '<stack>/cross_attention'; and 'logits' (B, T, V).
  """
  (logits_BTV, _), seen = build(config).apply({'params': params}, *tokens, mutable=['internals'])
  seen, found = seen['internals'], {'logits': logits_BTV}
  for stack in count.stacks(config):
    groups = [seen[g.name] for g in count.groups(config) if g.stack == stack]
    side = 'source_' if stack == 'encoder_layers' else ''
    streams = [seen[f'{side}embedding'][None], *(group['stream'] for group in groups)]
    found[f'{stack}/hidden'] = jnp.concatenate(streams)
    for name in ('attention', 'cross_attention'):
      if name in groups[0]:
        weights = [group[name]['weights'] for group in groups]
        found[f'{stack}/{name}'] = jnp.concatenate(weights)
  return found


def layer_name(stack: str, layer: int) -> str:
  """The name of one layer's parameters where layers are not stacked."""
  return f'{stack}_at_{layer}'


TABLE_DV = 'unembed_DV'  # a copy of the logits' table as a product of few rows reads it fastest


def by_layer(config: Config, params: dict) -> dict:
  """Parameters for `build(config, by_layer=True)`.

  In place of stacked layers a tree for each, by `layer_name`, and the logits' table turned.
  """
  groups = {group.name: group for group in count.groups(config)}
  found = {TABLE_DV: params.get('unembed', {}).get('table', params['embed']['table']).T}
  for name, tree in params.items():
    group = groups.get(name)
    if group is None:
      found[name] = tree
      continue
    for i in range(group.size):
      own = layer_name(group.stack, group.first + i)
      found[own] = jax.tree.map(lambda x, i=i: x[i], tree)
  return found


def _joined(dicts: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
  names = dict.fromkeys(name for found in dicts for name in found)
  return {name: jnp.concatenate([d[name] for d in dicts if name in d]) for name in names}
