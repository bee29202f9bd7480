"""What tokens of each architecture may see, and that what is not there changes nothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests import battery, pairwise, parity
from tests.parity import PADDED, PADDED_SOURCE, SEGMENTS, arguments, compiled, weights_of
from transformer import count, model, step
from transformer.config import Config

KINDS = {
  'decoder': {'model.positions': 'rotary'},
  'encoder': {
    'model.positions': 'learned',
    'model.token_types': 2,
    'model.norm': 'layernorm',
    'model.embedding_norm': True,
  },
  'encoder_decoder': {
    'model.positions': pairwise.SHORT['relative'],
    'model.num_encoder_layers': 3,
    'model.v_head_dim': 3,
    'ffn.encoder_ratios': '1,0,2',
    'data.source_len': 6,
  },
}
BOTH = 'encoder_decoder'


def config_of(kind: str, **changes: object) -> Config:
  return battery.tiny(**{'model.architecture': kind} | KINDS[kind] | changes)


def logits(config: Config, *args: np.ndarray | None) -> np.ndarray:
  return np.asarray(compiled(config)(weights_of(config), *args))


def moved(before: np.ndarray, after: np.ndarray) -> np.ndarray:
  """Which logits changed at all, (B, T)."""
  return np.any(before != after, axis=-1)


# --- Who sees whom, by replacement.


@pytest.mark.parametrize('kind', KINDS)
def test_every_place_moves_what_it_may_and_nothing_else(kind):
  config = config_of(kind)
  parity.see_what_they_may(config, times=range(6))


def test_in_an_encoder_every_token_moves_its_document_and_none_elsewhere():
  config = config_of('encoder')
  tokens, segments, *rest = arguments(config)
  before = logits(config, tokens, segments, *rest)
  for t in range(7):
    other = tokens.copy()
    other[0, t] = (other[0, t] + 7) % config.model.vocab_size
    after = logits(config, other, segments, *rest)
    assert moved(before, after)[0, :7].tolist() == (SEGMENTS[0] == SEGMENTS[0, t])[:7].tolist()
    assert not np.any(moved(before, after)[1:])  # nor other rows


@pytest.mark.parametrize('kind', ['decoder', 'encoder'])
def test_a_window_is_as_wide_as_it_says(kind):
  """Two layers of window 3 carry a token 2 · 2 places, and not one place further."""
  config = config_of(kind, **{'model.attention_window': 3})
  args = arguments(config, padded=False)
  for t in range(8):
    other = args[0].copy()
    other[:, t] = (other[:, t] + 7) % config.model.vocab_size
    found = moved(logits(config, *args), logits(config, other, *args[1:]))
    ahead = np.arange(8) - t
    reached = (ahead <= 4) & (ahead >= (0 if kind == 'decoder' else -4))
    assert np.array_equal(found, np.tile(reached, (3, 1)))


# --- Padding.


def pad(rows: np.ndarray, length: int, front: bool, value: int = -1) -> np.ndarray:
  missing = length - rows.shape[1]
  return np.pad(rows, ((0, 0), (missing, 0) if front else (0, missing)), constant_values=value)


@pytest.mark.parametrize('kind', KINDS)
def test_padding_changes_nothing(kind):
  """A row of five, and a source of four, alone; with more columns of −1; among longer rows."""
  config = config_of(kind)
  whole = arguments(config, padded=False)
  short = [x[:1, : 4 if x.shape[1] == 6 else 5] for x in whole if x is not None]
  alone = logits(config, *(short if kind != 'encoder' else (*short[:2], None, short[2])))[0]
  for front in (False, True):
    for front_of_source in (False, True) if kind == BOTH else (front,):
      args = []
      for place, x in enumerate(whole):
        if x is None:
          args.append(None)
          continue
        own = short[min(place, len(short) - 1)]
        source = kind == BOTH and place == 0
        outside = -1 if place == 0 or kind == BOTH else 0  # segments and types tell nothing
        own = pad(own, x.shape[1], front_of_source if source else front, outside)
        args.append(np.concatenate([x[1:2], own, x[2:]]))
      found = logits(config, *args)[1]
      found = found[3:] if front else found[:5]
      np.testing.assert_allclose(found, alone, atol=2e-5)
      shown = [np.where(x == -1, 3, x) if x is not None else None for x in args]
      off = logits(config, *shown)[1][3:] if front else logits(config, *shown)[1][:5]
      # Negative control: a token where padding was is seen, but by a decoder not behind it.
      assert (np.max(np.abs(off - alone)) > 1e-3) == (kind != 'decoder' or front)


@pytest.mark.parametrize('kind', KINDS)
def test_rows_that_see_nothing_stay_finite(kind):
  """All padding, in a source, a target, or both: values and gradients are numbers."""
  config = config_of(kind)
  args = [x if x is None else np.array(x) for x in arguments(config)]
  args[0][0] = args[-1 if kind == BOTH else 0][1] = -1
  if kind == BOTH:
    args[0][2] = args[1][2] = -1
  assert np.all(np.isfinite(logits(config, *args)))
  total = lambda p: jnp.sum(jnp.sin(compiled(config)(p, *args)))  # noqa: E731
  grads = battery.flat(jax.grad(total)(weights_of(config)))
  assert all(np.all(np.isfinite(g)) for g in grads.values())
  assert any(np.any(g != 0) for g in grads.values())


@pytest.mark.parametrize('kind', KINDS)
def test_permuting_the_batch_permutes_the_result(kind):
  config, order = config_of(kind), np.array([2, 0, 1])
  args = arguments(config)
  mixed = [x if x is None else x[order] for x in args]
  expected = logits(config, *args)[order]
  np.testing.assert_allclose(logits(config, *mixed), expected, atol=1e-6)
  one = [mixed[0], *args[1:]]  # negative control: the first argument alone
  assert np.max(np.abs(logits(config, *one) - expected)) > 0.01


# --- Teacher forcing.


def rows_of_pairs(config: Config) -> np.ndarray:
  """(3, S + T + 1): sources, padded; 0 and a target, closed by 0; padding. The last one is full."""
  sources, targets = arguments(config, padded=False)
  sources = np.where(np.sort(PADDED_SOURCE, axis=1), -1, sources)
  rows = np.full((3, sources.shape[1] + config.data.seq_len + 1), -1)
  rows[:, : sources.shape[1]] = sources
  for row, (length, target) in enumerate(zip((2, 4, 7), targets, strict=True)):
    rows[row, 6 : 6 + length + 2] = [0, *np.maximum(target[:length], 1), 0]
  return rows.astype(np.int32)


def test_teacher_forcing_is_scoring_step_by_step():
  """−Σ log p(y_{t+1} | x, y_{≤t}), each from a call that has been given no more than y_{≤t}."""
  config = config_of(BOTH)
  rows, weights = rows_of_pairs(config), weights_of(config)
  batch = {'tokens': rows, 'rows': np.arange(3, dtype=np.int32)}
  evaluate = jax.jit(lambda p: step.eval_step(config, p, batch, lambda x: x))
  found = evaluate(weights)
  nats, targets = float(found['nats']), float(found['targets'])
  total, scored = 0.0, 0
  sources = rows[:, :6]
  for t in range(8):
    known = np.where(np.arange(8) <= t, rows[:, 6:14], -1)
    log_p = special.log_softmax(np.float64(logits(config, sources, known)[:, t]), axis=-1)
    for row, wanted in enumerate(rows[:, 7 + t]):
      if wanted >= 0:
        total -= log_p[row, wanted]
        scored += 1
  assert scored == targets == 3 + 5 + 8  # every token of a target, and its end
  assert nats == pytest.approx(total, rel=1e-5)
  assert float(evaluate(battery.poke(weights, 'embed/table'))['nats']) != pytest.approx(
    total, rel=1e-5
  )


# --- Looking inside.


@functools.cache
def inspected(kind: str) -> dict[str, np.ndarray]:
  config = config_of(kind)
  look = jax.jit(lambda p, *args: model.inspect(config, p, *args))
  return jax.device_get(look(weights_of(config), *arguments(config)))


@pytest.mark.parametrize('kind', KINDS)
def test_inspect_tells_logits_weights_and_hidden_states(kind):
  config, found = config_of(kind), inspected(kind)
  layers, heads = config.model.num_layers, config.model.num_heads
  expected = {
    'logits': (3, 8, 32),
    'layers/hidden': (layers + 1, 3, 8, 16),
    'layers/attention': (layers, 3, heads, 8, 8),
  }
  if kind == BOTH:
    expected |= {
      'encoder_layers/hidden': (4, 3, 6, 16),
      'encoder_layers/attention': (3, 3, heads, 6, 6),
      'layers/cross_attention': (layers, 3, heads, 8, 6),
    }
  assert {name: x.shape for name, x in found.items()} == expected
  np.testing.assert_allclose(found['logits'], logits(config, *arguments(config)), atol=1e-6)
  for name, x in found.items():
    if name.endswith('attention'):
      np.testing.assert_allclose(x.sum(axis=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_inspected_is_what_the_oracle_has(kind):
  """Of the tokens that are there; and no weight falls on padding."""
  config, found = config_of(kind), inspected(kind)
  first = {group.stack: group.before for group in count.groups(config)}
  for row in range(3):
    noted: dict[str, np.ndarray] = {}
    parity.oracle(config, row, lambda name, x: noted.__setitem__(name, np.array(x)))  # noqa: B023
    here = {'layers': ~PADDED[row], 'encoder_layers': ~PADDED_SOURCE[row]}
    for stack in count.stacks(config):
      side, shown = ('source_' if stack == 'encoder_layers' else ''), here[stack]
      hidden = found[f'{stack}/hidden'][:, row][:, shown]
      np.testing.assert_allclose(hidden[0], noted[f'{side}embedding'], atol=2e-5)
      for layer in range(count.depth(config, stack)):
        at = f'{first[stack] + layer}'
        stream = [x for name, x in noted.items() if name.startswith(f'{at}/stream_')][-1]
        np.testing.assert_allclose(hidden[layer + 1], stream, atol=2e-5)
        seen = {'attention': shown}
        if kind == BOTH and stack == 'layers':
          seen['cross_attention'] = here['encoder_layers']
        for name, keys in seen.items():
          weights_NTS = found[f'{stack}/{name}'][layer, row][:, shown]
          inside = f'{at}/{name}/weights'.replace('/attention/', '/')
          np.testing.assert_allclose(weights_NTS[..., keys], noted[inside], atol=2e-5)
          assert not np.any(weights_NTS[..., ~keys])
