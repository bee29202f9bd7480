"""Models against NumPy ones, and what a decoder's logits may not depend on."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from tests import battery, pairwise, reference
from tests.parity import check, compiled, see_what_they_may, weights_of
from transformer import model, params, spec
from transformer.config import Config

POSITIONS = [pairwise.SHORT.get(name, name) for name in spec.variants('model.positions')]
ACTIVATIONS = list(spec.variants('ffn.activation'))
ROWS, NEVER = pairwise.rows()
SEGMENTS = np.array([[0, 0, 1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1]])
FRAMES = {  # around the activations
  'pre': {},
  'post': {'model.norm_placement': 'post', 'model.norm': 'layernorm', 'ffn.bias': True},
  'sandwich': {'model.norm_placement': 'sandwich', 'ffn.ratios': '1,2'},
  'parallel': {'model.parallel_branches': True, 'ffn.shared': True},
}


def config_of(positions: str, **changes) -> Config:
  return battery.tiny(**{'model.positions': positions} | changes)


def tokens_of(config: Config) -> np.ndarray:
  return battery.tokens(config)[: len(SEGMENTS), :-1]


def logits(config: Config, weights: dict | None = None, tokens=None, segments=SEGMENTS):
  weights = weights_of(config) if weights is None else weights
  tokens = tokens_of(config) if tokens is None else tokens
  return np.asarray(compiled(config)(weights, tokens, segments))


def oracle(config: Config) -> np.ndarray:
  rows = zip(tokens_of(config), SEGMENTS, strict=True)
  return np.stack([reference.decoder(config, weights_of(config), *row) for row in rows])


@pytest.mark.parametrize('number', range(len(ROWS)))
def test_against_numpy(number):
  """A set of models in which every two settings meet at every two of their values."""
  check(pairwise.config_of(ROWS[number]))


def test_only_these_pairs_of_settings_cannot_run():
  """Each for a reason: one is refused beside the other, or acts on what the other takes away."""
  of_source = {
    'model.num_encoder_layers': (2,),
    'model.shared_source': (False,),
    'ffn.encoder_ratios': ('ramp(0,2)', '2'),
    'ffn.encoder_activation': ('geglu',),
  }
  of_attention = {
    'model.num_kv_heads': (2, 1),
    'model.head_dim': (6,),
    'model.v_head_dim': (3,),
    'model.attention_window': (3,),
    'model.positions': ('rotary', pairwise.SHORT['relative'], 'alibi'),
    'model.parallel_branches': (True,),
    'model.qk_norm': (True,),
    'model.bias': (True,),
    'model.qkv_bias': (True,),
    'model.out_init': (0.5,),
    'model.attention_cap': (1.0,),
  }
  patterns = {'ffn.ratios': ('1,1,2', '2,0,1')}
  without = {
    ('model.architecture', 'decoder'): of_source | {'model.token_types': (2,)},
    ('model.architecture', 'encoder'): of_source,
    ('model.architecture', 'encoder_decoder'): {'model.token_types': (2,)},
    ('model.token_types', 2): of_source,
    ('model.num_heads', 0): of_source
    | of_attention
    | {
      'model.architecture': ('encoder_decoder',),
      'ffn.ratio': (0.0,),
      'ffn.ratios': ('2,0,1',),
    },
    ('model.norm', 'none'): {
      'model.norm_placement': ('post', 'sandwich'),
      'model.embedding_norm': (True,),
    },
    ('model.bias', True): {'model.qkv_bias': (True,)},
    ('model.head', 'transform'): {'ffn.activation': pairwise.FACTORS['ffn.activation'][1:]},
    ('ffn.ratio', 0.0): patterns,
    ('ffn.shared', True): patterns
    | {'ffn.ratio': (0.0,), 'ffn.encoder_ratios': ('ramp(0,2)', '2')}
    | {'ffn.encoder_activation': ('geglu',)},
  }
  expected = {
    pairwise.Pair([one, (name, value)])
    for one, others in without.items()
    for name, values in others.items()
    for value in values
  }
  assert set(NEVER) == expected


def test_every_setting_of_the_model_is_in_the_set():
  from transformer.config import SETTINGS

  sizes = {'model.d_model', 'model.num_layers', 'model.vocab_size', 'ffn.d_ff'}
  ours = {path for path in SETTINGS if path.startswith(('model.', 'ffn.'))}
  assert set(pairwise.FACTORS) == ours - sizes - {'model.dtype'}
  for a, b in itertools.combinations(pairwise.FACTORS, 2):  # the promise, counted once more
    met = {(row[a], row[b]) for row in ROWS}
    asked = itertools.product(pairwise.FACTORS[a], pairwise.FACTORS[b])
    assert {p for p in asked if pairwise.Pair(zip((a, b), p, strict=True)) not in NEVER} == met


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_every_activation_in_a_model(activation):
  frame = list(FRAMES)[ACTIVATIONS.index(activation) % len(FRAMES)]
  check(config_of('rotary', **FRAMES[frame], **{'ffn.activation': activation}))


@pytest.mark.exhaustive
@pytest.mark.parametrize('frame', FRAMES)
@pytest.mark.parametrize('hidden_layers', [1, 2])
@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_against_numpy_whole_product(activation, hidden_layers, frame):
  own = {'ffn.activation': activation, 'ffn.hidden_layers': hidden_layers}
  check(config_of('rotary', **FRAMES[frame], **own))


@pytest.mark.exhaustive
@pytest.mark.parametrize('norm', [*spec.variants('model.norm'), 'layernorm(bias=False)'])
@pytest.mark.parametrize('placement', ['pre', 'post', 'sandwich'])
@pytest.mark.parametrize('positions', POSITIONS)
def test_against_numpy_every_position_and_norm(positions, norm, placement):
  check(config_of(positions, **{'model.norm': norm, 'model.norm_placement': placement}))


@pytest.mark.parametrize('positions', POSITIONS)
def test_the_future_is_not_seen(positions):
  see_what_they_may(config_of(positions), times=range(SEGMENTS.shape[1]))


@pytest.mark.parametrize('positions', POSITIONS)
def test_other_documents_are_not_seen(positions):
  config = config_of(positions)
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
  config = config_of(positions)
  document = np.array([3, 9, 4, 1])
  packed = np.array([[5, 6, 2, *document, 8]])
  where = np.array([[0, 0, 0, 1, 1, 1, 1, 2]])
  alone = np.array([[*document, 0, 0, 0, 0]])
  got = logits(config, tokens=packed, segments=where)[0, 3:7]
  expected = logits(config, tokens=alone, segments=np.zeros((1, 8), int))[0, :4]
  np.testing.assert_allclose(got, expected, atol=1e-5)
  run_together = logits(config, tokens=packed, segments=np.zeros((1, 8), int))[0, 3:7]
  assert np.max(np.abs(run_together - expected)) > 0.01  # negative control


@pytest.mark.parametrize(
  ('positions', 'layers'), [*((p, 2) for p in POSITIONS), ('none', 1), ('rotary', 1)]
)
def test_order_matters(positions, layers):
  """Two tokens swapped: the last logits move. The mask alone tells order only from layer 2 on."""
  config = config_of(positions, **{'model.num_layers': layers})
  one = np.array([[1, 2, 3, 4, 5, 6, 7, 8]])
  other = one[:, [1, 0, 2, 3, 4, 5, 6, 7]]
  same = np.zeros((1, 8), int)
  moved = logits(config, tokens=one, segments=same) - logits(config, tokens=other, segments=same)
  assert (np.max(np.abs(moved[0, -1])) > 1e-4) == ((positions, layers) != ('none', 1))


def test_without_segments_a_row_is_one_document():
  config = battery.tiny()
  tokens = tokens_of(config)
  apply = jax.jit(lambda p, x: model.build(config).apply({'params': p}, x)[0])
  got = apply(weights_of(config), tokens)
  expected = logits(config, segments=np.zeros_like(SEGMENTS))
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_unrolling_changes_no_logits():
  rolled, unrolled = battery.tiny(), battery.tiny(**{'model.unroll': True})
  np.testing.assert_allclose(logits(rolled), logits(unrolled), atol=1e-5)


BFLOAT16 = {
  'swiglu': {'ffn.activation': 'swiglu'},
  'many': {
    'ffn.activation': 'product(leaky_relu(0.1), prelu)',
    'ffn.hidden_layers': 2,
    'ffn.bias': True,
    'model.norm_placement': 'sandwich',
    'model.positions': pairwise.SHORT['relative'],
    'model.qk_norm': True,
    'model.bias': True,
    'model.attention_cap': 2.0,
    'model.logit_cap': 3.0,
    'model.logits_bias': True,
    'model.tied': False,
  },
  'post': FRAMES['post'] | {'model.positions': 'alibi', 'model.num_kv_heads': 1},
}


@pytest.mark.parametrize('name', BFLOAT16)
def test_bfloat16_is_near_float32(name):
  config = battery.tiny(**BFLOAT16[name])
  low = battery.tiny(**BFLOAT16[name] | {'model.dtype': 'bfloat16'})
  exact, got = oracle(config), logits(low, weights_of(config))
  assert got.dtype == np.float32
  error = np.abs(got - exact)
  assert 0 < np.max(error) < 0.06 * np.max(np.abs(exact))


def test_embedding_and_logits_have_the_scale_they_should():
  """Unit variance enters the first block; logits of a fresh model have about unit variance."""
  config = battery.tiny(**{'model.d_model': 64, 'model.vocab_size': 200})
  weights = jax.jit(lambda: params.initialize(config, jax.random.key(0)))()
  entering = weights['embed']['table'] * config.model.d_model**0.5
  assert np.std(entering) == pytest.approx(1, rel=0.05)
  assert np.std(logits(config, weights)) == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize('positions', POSITIONS)
def test_second_call_compiles_nothing(positions):
  config = config_of(positions)
  logits(config)
  with battery.compilations() as seconds:
    logits(config, tokens=tokens_of(config)[::-1].copy())
  assert seconds == []
