"""The decoder against a NumPy one, and what its logits may not depend on."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference
from transformer import model, params, spec
from transformer.config import Config

POSITIONS = list(spec.variants('model.positions'))
NORMS = list(spec.variants('model.norm'))
ACTIVATIONS = list(spec.variants('ffn.activation'))
TOLERANCE = 2e-5  # of logits near 1 in float32, against float64
SEGMENTS = np.array([[0, 0, 1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1]])


def config_of(positions: str, norm: str, bias: bool, activation: str, **changes) -> Config:
  return battery.tiny(
    **{
      'model.positions': positions,
      'model.norm': norm,
      'model.bias': bias,
      'ffn.bias': bias,
      'ffn.activation': activation,
    }
    | changes
  )


@functools.cache
def weights_of(config: Config) -> dict:
  initialize = jax.jit(functools.partial(params.initialize, config))
  return battery.jiggle(initialize(jax.random.key(0)), scale=0.1)


@functools.cache
def compiled(config: Config):
  """(weights, tokens, segments) -> logits."""
  return jax.jit(lambda p, x, s: model.build(config).apply({'params': p}, x, s)[0])


def tokens_of(config: Config) -> np.ndarray:
  return battery.tokens(config)[: len(SEGMENTS), :-1]


def logits(config: Config, weights: dict | None = None, tokens=None, segments=SEGMENTS):
  weights = weights_of(config) if weights is None else weights
  tokens = tokens_of(config) if tokens is None else tokens
  return np.asarray(compiled(config)(weights, tokens, segments))


def oracle(config: Config) -> np.ndarray:
  rows = zip(tokens_of(config), SEGMENTS, strict=True)
  return np.stack([reference.decoder(config, weights_of(config), *row) for row in rows])


def check(config: Config) -> None:
  expected = oracle(config)
  np.testing.assert_allclose(logits(config), expected, atol=TOLERANCE)
  for path in ('layers/ffn/up', 'layers/attention/value'):  # negative control
    # by 5: no unit of a relu stays dead
    poked = logits(config, battery.poke(weights_of(config), path, 5.0))
    assert np.max(np.abs(poked - expected)) > 10 * TOLERANCE, path


FRAMES = list(itertools.product(POSITIONS, NORMS, [False, True]))


@pytest.mark.parametrize(
  ('positions', 'norm', 'bias', 'activation'),
  [(*frame, ACTIVATIONS[i % len(ACTIVATIONS)]) for i, frame in enumerate(FRAMES)],
)
def test_against_numpy(positions, norm, bias, activation):
  """Every position × norm × bias, the activations in turn: each one comes up."""
  assert len(FRAMES) >= len(ACTIVATIONS)
  check(config_of(positions, norm, bias, activation))


@pytest.mark.exhaustive
@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('positions', POSITIONS)
def test_against_numpy_whole_product(positions, norm, bias, activation):
  check(config_of(positions, norm, bias, activation))


@pytest.mark.parametrize('positions', ['rotary', 'learned'])
def test_every_parameter_counts(positions):
  """Moving one number of any parameter is seen by the comparison with the oracle."""
  config = config_of(positions, 'layernorm', True, 'swiglu')
  expected = oracle(config)
  for path in battery.flat(weights_of(config)):
    poked = logits(config, battery.poke(weights_of(config), path))
    seen = np.max(np.abs(poked - expected)) > 10 * TOLERANCE
    # softmax does not see a bias of the keys unless keys are rotated afterwards
    assert seen == (path != 'layers/attention/key_bias' or positions == 'rotary'), path


@pytest.mark.parametrize('positions', POSITIONS)
def test_the_future_is_not_seen(positions):
  """By replacement: any change of token t leaves all earlier logits as they were, to the bit."""
  config = config_of(positions, 'rmsnorm', False, 'gelu')
  tokens = tokens_of(config)
  one_document = np.zeros_like(SEGMENTS)
  before = logits(config, tokens=tokens, segments=one_document)
  for t in range(tokens.shape[1]):
    changed = tokens.copy()
    changed[:, t] = (changed[:, t] + 7) % config.model.vocab_size
    after = logits(config, tokens=changed, segments=one_document)
    assert np.array_equal(before[:, :t], after[:, :t])
    assert np.all(np.max(np.abs(before[:, t:] - after[:, t:]), axis=-1) > 1e-6)


@pytest.mark.parametrize('positions', POSITIONS)
def test_other_documents_are_not_seen(positions):
  config = config_of(positions, 'rmsnorm', False, 'gelu')
  tokens = tokens_of(config)
  before = logits(config, tokens=tokens)
  for t in range(tokens.shape[1]):
    changed = tokens.copy()
    changed[0, t] = (changed[0, t] + 7) % config.model.vocab_size
    after = logits(config, tokens=changed)
    moved = np.any(before[0] != after[0], axis=-1)
    own = (SEGMENTS[0] == SEGMENTS[0, t]) & (np.arange(len(moved)) >= t)
    assert moved.tolist() == own.tolist()
    assert np.array_equal(before[1], after[1])  # nor other rows


@pytest.mark.parametrize('positions', POSITIONS)
def test_a_document_reads_the_same_wherever_it_lies(positions):
  """Positions start again at each document: packed or alone, its logits are equal."""
  config = config_of(positions, 'rmsnorm', False, 'gelu')
  document = np.array([3, 9, 4, 1])
  packed = np.array([[5, 6, 2, *document, 8]])
  where = np.array([[0, 0, 0, 1, 1, 1, 1, 2]])
  alone = np.array([[*document, 0, 0, 0, 0]])
  got = logits(config, tokens=packed, segments=where)[0, 3:7]
  expected = logits(config, tokens=alone, segments=np.zeros((1, 8), int))[0, :4]
  np.testing.assert_allclose(got, expected, atol=1e-5)
  run_together = logits(config, tokens=packed, segments=np.zeros((1, 8), int))[0, 3:7]
  assert np.max(np.abs(run_together - expected)) > 0.01  # negative control


def test_order_matters():
  """Two tokens swapped two places back: without positions the last logits would not move."""
  for positions in POSITIONS:
    config = config_of(positions, 'rmsnorm', False, 'gelu')
    one = np.array([[1, 2, 3, 4, 5, 6, 7, 8]])
    other = one[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    same = np.zeros((1, 8), int)
    moved = logits(config, tokens=one, segments=same) - logits(config, tokens=other, segments=same)
    assert np.max(np.abs(moved[0, -1])) > 1e-4


def test_without_segments_a_row_is_one_document():
  config = battery.tiny()
  tokens = tokens_of(config)
  apply = jax.jit(lambda p, x: model.build(config).apply({'params': p}, x)[0])
  got = apply(weights_of(config), tokens)
  expected = logits(config, segments=np.zeros_like(SEGMENTS))
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_unrolling_changes_neither_tree_nor_logits():
  rolled, unrolled = battery.tiny(), battery.tiny(**{'model.unroll': True})
  assert battery.same_bits(weights_of(rolled), weights_of(unrolled))
  np.testing.assert_allclose(logits(rolled), logits(unrolled), atol=1e-5)


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_bfloat16_is_near_float32(activation):
  config = battery.tiny(**{'ffn.activation': activation})
  low = battery.tiny(**{'ffn.activation': activation, 'model.dtype': 'bfloat16'})
  exact, got = logits(config), logits(low, weights_of(config))
  assert got.dtype == np.float32
  error = np.abs(got - exact)
  assert 0 < np.max(error) < 0.05 * np.max(np.abs(exact))


def test_embedding_and_logits_have_the_scale_they_should():
  """Unit variance enters the first block; logits of a fresh model have about unit variance."""
  config = battery.tiny(**{'model.d_model': 64, 'model.vocab_size': 200})
  weights = params.initialize(config, jax.random.key(0))
  entering = weights['embed']['table'] * config.model.d_model**0.5
  assert np.std(entering) == pytest.approx(1, rel=0.05)
  assert np.std(logits(config, weights)) == pytest.approx(1, rel=0.3)


def test_evaluation_is_the_default_and_needs_no_randomness():
  """Dropout acts on keys that are given, and only on them."""
  config = battery.tiny(**{'model.dropout': 0.5})
  weights, tokens = weights_of(config), tokens_of(config)
  assert np.array_equal(logits(config, weights), logits(battery.tiny(), weights))
  train = jax.jit(lambda k: model.build(config).apply({'params': weights}, tokens, None, k)[0])
  noise = [jax.random.split(jax.random.key(s), len(tokens)) for s in (0, 0, 1)]
  one, again, other = (train(keys) for keys in noise)
  assert np.array_equal(one, again)
  assert not np.array_equal(one, other)
  swapped = train(noise[0][::-1])  # keys are of rows: another key, other logits
  assert not np.array_equal(one, swapped)


def test_dropout_differs_between_layers():
  """The same row at two layers must not lose the same entries."""
  import flax.linen as nn

  from transformer.layers import dropout

  key = jax.random.split(jax.random.key(0), 1)
  fold = lambda layer: jax.vmap(lambda k: jax.random.fold_in(k, layer))(key)  # noqa: E731
  masks = [
    np.asarray(dropout(jnp.ones((1, 64)), fold(layer), 0.5, site))
    for layer in range(2)
    for site in range(2)
  ]
  assert len({mask.tobytes() for mask in masks}) == 4
  assert isinstance(model.build(battery.tiny()), nn.Module)


@pytest.mark.parametrize('positions', POSITIONS)
def test_second_call_compiles_nothing(positions):
  config = config_of(positions, 'rmsnorm', False, 'gelu')
  logits(config)
  with battery.compilations() as seconds:
    logits(config, tokens=tokens_of(config)[::-1].copy())
  assert seconds == []
