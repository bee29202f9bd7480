"""A model beside its oracle, of any architecture: what test files share that compare the two."""

from __future__ import annotations

import functools

import jax
import numpy as np

from tests import battery, reference, reference_source
from transformer import model
from transformer.config import Config

TOLERANCE = 2e-5  # of logits near 1 in float32, against float64
# Three rows of eight tokens: packed and padded at the end, padded in front, padded at the end.
SEGMENTS = np.array([[0, 0, 1, 1, 1, 1, 2, 2], [1] * 8, [1] * 8])
PADDED = np.array([[0] * 7 + [1], [1] * 2 + [0] * 6, [0] * 5 + [1] * 3], bool)
PADDED_SOURCE = np.array([[0] * 6, [0] * 3 + [1] * 3, [1] * 2 + [0] * 4], bool)  # of six
TYPES = np.array([[0, 1, 1, 0, 1, 0, 0, 1], [0] * 8, [1] * 8])

weights_of = functools.cache(battery.weights)


@functools.cache
def compiled(config: Config):
  """(weights, what the model takes …) -> logits."""
  return jax.jit(lambda p, *args: model.build(config).apply({'params': p}, *args)[0])


def arguments(config: Config, padded: bool = True) -> list:
  """Three rows as the model takes them. padded: else they are whole, and one document each.

  A source has another length than its target.
  """
  tokens = battery.tokens(config)[:3, :-1]
  sources = np.random.default_rng(1).integers(1, config.model.vocab_size, PADDED_SOURCE.shape)
  if padded:
    tokens, sources = np.where(PADDED, -1, tokens), np.where(PADDED_SOURCE, -1, sources)
  if config.model.architecture == 'encoder_decoder':
    return [sources, tokens]
  segments = SEGMENTS if padded else np.zeros_like(SEGMENTS)
  return [tokens, segments, *([None, TYPES] if config.model.token_types else [])]


def oracle(config: Config, row: int, note: reference.Note = reference.silent) -> np.ndarray:
  """logits_TV of one row of `arguments`, which the oracle gets without its padding."""
  args, weights, shown = arguments(config), weights_of(config), ~PADDED[row]
  if config.model.architecture == 'encoder_decoder':
    source_S, target_T = (x[row][x[row] >= 0] for x in args)
    return reference_source.encoder_decoder(config, weights, source_S, target_T, note)
  tokens_T, segments_T, *types = (x[row][shown] for x in args if x is not None)
  if config.model.architecture == 'encoder':
    return reference_source.encoder(config, weights, tokens_T, segments_T, *types, note=note)
  return reference.decoder(config, weights, tokens_T, segments_T, note)


def unseen(config: Config, path: str) -> bool:
  """Whether a parameter has no effect: a bias of keys that enter the scores as they are.

  It adds one number to all scores of a query, which softmax does not see; it does behind a
  rotation, a norm or a cap.
  """
  m = config.model
  turned = m.positions.startswith('rotary') and '/attention/' in path  # of a source never
  return path.endswith('key_bias') and not (turned or m.qk_norm or m.attention_cap)


def check(config: Config) -> None:
  """Against the oracle; with each parameter moved, not; and nothing is seen that may not be."""
  args, shown = arguments(config), ~PADDED
  expected = np.concatenate([oracle(config, row) for row in range(3)])
  size = max(1.0, np.max(np.abs(expected)))

  def off(weights: dict) -> float:
    return np.max(np.abs(np.asarray(compiled(config)(weights, *args))[shown] - expected))

  assert off(weights_of(config)) < TOLERANCE * size
  for path in battery.flat(weights_of(config)):  # negative control
    seen = off(battery.stir(weights_of(config), path)) > 10 * TOLERANCE * size
    assert seen != unseen(config, path), path
  see_what_they_may(config, times=[4])


def see_what_they_may(config: Config, times: list[int]) -> None:
  """By replacement: a token moves the logits from its own on, of an encoder those before it too.

  What it does not move stays as it was, to the bit. A token of a source moves all.
  """
  both, heads = config.model.architecture == 'encoder_decoder', config.model.num_heads
  ahead = config.model.architecture == 'encoder'
  args = arguments(config, padded=False)
  before = np.asarray(compiled(config)(weights_of(config), *args))
  for t in times:
    for place, own in enumerate(args[:1] if not both else args):
      changed = list(args)
      changed[place] = own.copy()
      changed[place][:, t] = (own[:, t] + 7) % config.model.vocab_size
      after = np.asarray(compiled(config)(weights_of(config), *changed))
      moved_BT = np.max(np.abs(after - before), axis=-1)
      source = both and place == 0
      free = 0 if source or ahead else t
      assert np.all(moved_BT[:, :free] == 0)
      seeing = slice(free, None) if heads else slice(t, t + 1)
      assert np.all(moved_BT[:, seeing] > 1e-6)
