"""The three Transformers, as functional Linen modules made of the same stacks of blocks.

Ids below 0 are padding: no other token attends to them, and what comes out at their places means
nothing.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer import count
from transformer.config import Config
from transformer.ffn import Aux
from transformer.ops.cross_entropy import Unembedding
from transformer.stacks import TABLE_DV, Leaves, Slots, Stacks, joined, layer_name


def build(
  config: Config, by_layer: bool = False, logits: bool = True
) -> Decoder | Encoder | EncoderDecoder:
  """The model a resolved config describes.

  `build(config).apply({'params': params}, tokens_BT)` returns (logits_BTV, Aux) of a decoder or an
  encoder, `.apply({'params': params}, source_BS, target_BT)` of an encoder_decoder. by_layer: on
  parameters as `by_layer` has them. logits: off, an Unembedding takes
  their place where a loss is made of it directly (ops/cross_entropy.py).
  """
  kinds = {'decoder': Decoder, 'encoder': Encoder, 'encoder_decoder': EncoderDecoder}
  return kinds[config.model.architecture](config, by_layer, logits)


class Decoder(Stacks):
  """Decoder-only Transformer (Radford et al. 2018): a token sees itself and those before it."""

  @nn.compact
  def __call__(
    self,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    noise_B: jax.Array | None = None,
    slots: Slots | None = None,
  ) -> tuple[jax.Array | Unembedding, Aux]:
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
    return self._answer(x_BTD, table_VD), aux


class Encoder(Stacks):
  """Encoder-only Transformer (Devlin et al. 2019): every token sees all of its document."""

  @nn.compact
  def __call__(
    self,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    noise_B: jax.Array | None = None,
    types_BT: jax.Array | None = None,
  ) -> tuple[jax.Array | Unembedding, Aux]:
    """Logits of the token that belongs at each place, from both sides of it.

    types_BT: kinds of tokens, all 0 unless given (model.token_types). Else as of Decoder.
    """
    table_VD = Leaves(self.config, name='embed')()['table']
    x_BTD, aux = self._sequence(
      *('layers', table_VD, tokens_BT, segments_BT, noise_B, False, types_BT),
      shared_ffn=self._shared_ffn(),
    )
    return self._answer(x_BTD, table_VD), aux


class EncoderDecoder(Stacks):
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
  ) -> tuple[jax.Array | Unembedding, Aux]:
    """Logits of the token after each of the target's: teacher forcing, all places at once.

    memory_BSD: what `SourceEncoder` made of the source, where it is known already. slots: as of
    Decoder; with them and without memory, that of the first such call is read from the cache.
    """
    table_VD, shared = Leaves(self.config, name='embed')()['table'], self._shared_ffn()
    seen = dict(shared_ffn=shared, memory_mask_BTS=(source_BS >= 0)[:, None])
    if slots is not None:
      x_BTD, aux = self._next(table_VD, target_BT, slots, memory_BSD=memory_BSD, **seen)
      return self._answer(x_BTD, table_VD), aux
    auxs = []
    if memory_BSD is None:
      memory_BSD, aux = _encode(self, source_BS, noise_B, table_VD, shared)
      auxs.append(aux)
    x_BTD, aux = self._sequence(
      *('layers', table_VD, target_BT, None, noise_B, True), memory_BSD=memory_BSD, **seen
    )
    auxs.append(aux)
    return self._answer(x_BTD, table_VD), Aux(*(joined(d) for d in zip(*auxs, strict=True)))


class SourceEncoder(Stacks):
  """The encoder of an EncoderDecoder, alone, on the same parameters."""

  @nn.compact
  def __call__(self, source_BS: jax.Array) -> jax.Array:
    """memory_BSD of a source."""
    table_VD = Leaves(self.config, name='embed')()['table']
    return _encode(self, source_BS, None, table_VD, self._shared_ffn())[0]


def _encode(
  model: Stacks,
  source_BS: jax.Array,
  noise_B: jax.Array | None,
  table_VD: jax.Array,
  shared_ffn: dict | None,
) -> tuple[jax.Array | Unembedding, Aux]:
  if not model.config.model.shared_source:
    table_VD = Leaves(model.config, name='source_embed')()['table']
  return model._sequence(
    *('encoder_layers', table_VD, source_BS, None, noise_B, False), shared_ffn=shared_ffn
  )


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
