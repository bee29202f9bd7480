"""What a batch of rows asks of each architecture: inputs, targets, and which of them count.

decoder: the next token of each. encoder: tokens that were hidden (Devlin et al. 2019, §3.1).
encoder_decoder: the next token of the target, given the source and the true tokens before it
(teacher forcing): all places in parallel, −Σ log p(y_{t+1} | x, y_{≤t}), padding left out.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import Config, routing


class Example(NamedTuple):
  """arguments: what the model takes before its noise. weights_BT: 1 where a target counts."""

  arguments: tuple[jax.Array, ...]
  targets_BT: jax.Array
  weights_BT: jax.Array


def example(config: Config, tokens: jax.Array, noise_B: jax.Array | None = None) -> Example:
  """What rows of a batch ask of a resolved config's model.

  tokens: int32 (B, T+1), −1 is padding; of an encoder_decoder (B, S+T+1), the source before them.
  noise_B: a key per row, which in training says what an encoder's rows hide; without it their
  content does, so that all models are judged by the same places.
  """
  source_len = config.data.source_len
  inputs_BT, targets_BT, weights_BT, segments_BT = split(tokens[:, source_len:])
  if config.model.architecture == 'encoder_decoder':
    return Example((tokens[:, :source_len], inputs_BT), targets_BT, weights_BT)
  if config.model.architecture == 'decoder':
    return Example((inputs_BT, segments_BT), targets_BT, weights_BT)
  key_B = _keys_by_content(tokens) if noise_B is None else noise_B
  shown_BT, chosen_BT = jax.vmap(lambda x, key: _hide(config, x, key))(tokens[:, :-1], key_B)
  return Example((shown_BT, segments_BT), inputs_BT, chosen_BT.astype(jnp.float32))


def uses_noise(config: Config) -> bool:
  """Whether a resolved config's model does anything else in training than in evaluation."""
  m, moe = config.model, config.moe
  rates = m.dropout, m.stochastic_depth, config.ffn.dropout
  if moe.experts:  # training is told by its noise, and differs by jitter and capacity
    jitter = getattr(routing.router(config), 'jitter', 0.0)
    rates += jitter, moe.capacity_factor != moe.eval_capacity_factor
  return any(rates)


def split(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """(B, T+1) tokens -> inputs_BT, targets_BT, weights_BT (0 on padding), segments_BT.

  A document begins at each token 0; segments number the documents of a row.
  """
  inputs_BT, targets_BT = tokens[:, :-1], tokens[:, 1:]
  weights_BT = (targets_BT >= 0).astype(jnp.float32)
  segments_BT = jnp.cumsum(inputs_BT == 0, axis=1)
  return inputs_BT, targets_BT, weights_BT, segments_BT


def _hide(config: Config, tokens_T: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(tokens with some hidden, which were chosen).

  Each is chosen with chance loss.mask_rate, ends of documents never. Of the chosen, 80 % become
  the mask, 10 % any token, 10 % stay, so that the model cannot trust what it sees.
  """
  choice, way, other = jax.random.split(jax.random.fold_in(key, _SITE), 3)
  chosen_T = jax.random.bernoulli(choice, config.loss.mask_rate, tokens_T.shape) & (tokens_T > 0)
  way_T = jax.random.uniform(way, tokens_T.shape)
  other_T = jax.random.randint(other, tokens_T.shape, 1, config.model.vocab_size)
  shown_T = jnp.where(way_T < 0.9, other_T, tokens_T)
  shown_T = jnp.where(way_T < 0.8, config.data.mask_token, shown_T)
  return jnp.where(chosen_T, shown_T, tokens_T), chosen_T


_SITE = 2**31 - 1  # apart from layers', whose numbers a row's key is folded with in the model


def _keys_by_content(tokens: jax.Array) -> jax.Array:
  """A key per row that depends on its tokens alone."""
  odd = 2 * np.random.default_rng(0).integers(0, 2**31, tokens.shape[1], dtype=np.uint32) + 1
  total_B = jnp.sum(tokens.astype(jnp.uint32) * odd, axis=1, dtype=jnp.uint32)
  return jax.vmap(lambda total: jax.random.fold_in(jax.random.key(0), total))(total_B)
