"""Initial parameters: by the table, from keys of their own, shared by variants bit for bit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from tests.test_count import ROWS, SHAPES, small
from transformer import axes, count, model, params
from transformer.config import PRESETS, Config, resolve, widths


@functools.cache
def initialize(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
  return battery.flat(params.initialize(config, jax.random.key(seed)))


@pytest.mark.parametrize('name', [*PRESETS, *SHAPES, *range(len(ROWS))])
def test_the_tree_is_the_one_that_linen_makes(name):
  """Down to its order, for every two settings of the model at every two of their values."""
  config = resolve(Config().replace(**PRESETS[name])) if name in PRESETS else small(name)
  tokens = [jnp.zeros((1, 2), jnp.int32)] * 2
  ours = jax.eval_shape(lambda: params.initialize(config, jax.random.key(0)))
  linen = jax.eval_shape(lambda: model.build(config).init(jax.random.key(0), *tokens))['params']
  assert jax.tree.structure(ours) == jax.tree.structure(linen)
  assert jax.tree.leaves(ours) == jax.tree.leaves(linen)  # shapes and types
  assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype('float32')}


def deviation(path: str, config: Config) -> float:
  """1/√fan-in, residual writers divided by √(branches): 2 a layer, 3 beside a source."""
  m, d, f = config.model, config.model.d_model, config.ffn.d_ff
  beside = m.architecture == 'encoder_decoder' and path.startswith('layers')
  encoder = path.startswith('encoder_layers')
  layers = (m.num_encoder_layers if encoder else 0) or m.num_layers
  depth = ((3 if beside else 2) * layers) ** 0.5
  leaf = path.rpartition('/')[2]
  return {
    'table': d**-0.5,
    'query': d**-0.5,
    'key': d**-0.5,
    'value': d**-0.5,
    'out': m.out_init * (m.num_heads * (m.v_head_dim or m.head_dim)) ** -0.5 / depth,
    'transform': d**-0.5,
    'up': d**-0.5,
    'gate': d**-0.5,
    'middle_up': f**-0.5,
    'middle_gate': f**-0.5,
    'down': config.ffn.down_init * f**-0.5 / depth,
  }[leaf]


def constant(path: str) -> float:
  """What is not drawn: biases are 0, scales 1, slopes of prelu .25."""
  return 1.0 if path.endswith('scale') else 0.25 if path.endswith('slope') else 0.0


DEVIATIONS = {
  'plain': {},
  'factors': {'model.out_init': 0.5, 'ffn.down_init': 2.0},
  'many': {
    'model.norm': 'layernorm',
    'model.bias': True,
    'model.qk_norm': True,
    'model.num_kv_heads': 1,
    'model.positions': 'learned',
    'model.tied': False,
    'model.logits_bias': True,
    'model.norm_placement': 'sandwich',
    'ffn.bias': True,
    'ffn.hidden_layers': 2,
    'ffn.activation': 'product(prelu, silu)',
  },
  'encoder': {
    'model.architecture': 'encoder',
    'model.embedding_norm': True,
    'model.token_types': 50,  # enough to estimate a deviation
    'model.head': 'transform',
  },
  'source': {
    'model.architecture': 'encoder_decoder',
    'model.num_encoder_layers': 5,
    'model.v_head_dim': 12,
    'model.positions': 'learned',
    'model.shared_source': False,
    'model.out_init': 0.5,
  },
}


@pytest.mark.parametrize('name', DEVIATIONS)
def test_deviations_are_those_of_the_table(name):
  config = battery.tiny(
    **DEVIATIONS[name],
    **{'model.d_model': 64, 'model.num_layers': 3, 'model.head_dim': 24, 'ffn.d_ff': 150,
       'model.vocab_size': 100, 'data.seq_len': 64},
  )  # fmt: skip
  tree = initialize(config)
  for path, leaf in tree.items():
    if axes.param(path).init != 'normal':
      assert np.all(leaf == constant(path)), path
      continue
    expected = deviation(path, config)
    error = 4 / np.sqrt(2 * leaf.size)  # four deviations of an estimated deviation
    assert np.std(leaf) == pytest.approx(expected, rel=error), path
    assert abs(np.mean(leaf)) < 4 * expected / np.sqrt(leaf.size), path
    if axes.stacked(path):
      assert not np.any(np.isclose(leaf[0], leaf[1]).all()), f'{path}: layers are alike'
  matrices = [np.ravel(tree[f'layers/attention/{n}'][..., :12]) for n in ('key', 'value')]
  assert abs(np.corrcoef(matrices) - np.eye(2)).max() < 0.08  # each from its own key


def test_factors_scale_and_change_nothing_else():
  factors = {'model.out_init': 0.5, 'ffn.down_init': 0.0}
  plain, other = initialize(battery.tiny()), initialize(battery.tiny(**factors))
  for path, leaf in plain.items():
    scale = {'layers/attention/out': 0.5, 'layers/ffn/down': 0.0}.get(path, 1.0)
    np.testing.assert_allclose(other[path], scale * leaf, rtol=1e-6, err_msg=path)
    assert scale != 1.0 or np.array_equal(other[path], leaf), path


def test_variants_share_what_they_have_in_common_bit_for_bit():
  relu = initialize(battery.tiny(**{'ffn.activation': 'relu'}))
  for changes in (
    {'ffn.activation': 'swiglu'},
    {'ffn.activation': 'geglu', 'ffn.bias': True, 'model.bias': True, 'model.norm': 'layernorm'},
    {'model.positions': 'learned', 'model.dropout': 0.5, 'model.dtype': 'bfloat16'},
    {'model.unroll': True, 'data.batch_size': 2, 'optim.learning_rate': 0.5},
    {'ffn.activation': 'product(prelu, prelu)', 'ffn.hidden_layers': 2, 'ffn.dropout': 0.1},
    {'model.norm_placement': 'sandwich', 'model.qk_norm': True, 'model.tied': False},
    {'model.positions': 'relative', 'model.logits_bias': True, 'model.attention_cap': 2.0},
    {'model.stochastic_depth': 0.5, 'model.embedding_scale': 'one', 'model.qkv_bias': True},
  ):
    other = initialize(battery.tiny(**changes))
    assert relu.keys() <= other.keys()
    for path in relu:
      assert relu[path].tobytes() == other[path].tobytes(), path


def test_an_encoder_begins_as_a_decoder_does():
  one, other = (
    initialize(battery.tiny(**{'model.architecture': a})) for a in ('encoder', 'decoder')
  )
  assert all(one[path].tobytes() == other[path].tobytes() for path in other)
  assert one.keys() == other.keys()


def test_a_decoder_begins_alike_with_and_without_a_source():
  """Bit for bit, but for what writes into the residual stream: 3 branches a layer, not 2.

  An encoder is no copy of it: the names of its parameters are other ones, and so are its keys.
  """
  alone = initialize(battery.tiny())
  both = initialize(battery.tiny(**{'model.architecture': 'encoder_decoder'}))
  assert alone.keys() < both.keys()
  for path, leaf in alone.items():
    if axes.param(path).residual:
      np.testing.assert_allclose(both[path], leaf * (2 / 3) ** 0.5, rtol=1e-6, err_msg=path)
      encoder = both[f'encoder_{path}']  # two branches there
      assert np.std(encoder) == pytest.approx(np.std(leaf), rel=0.15)
    else:
      assert both[path].tobytes() == leaf.tobytes(), path
  for name in ('attention/query', 'ffn/up'):
    own, other = both[f'layers/{name}'], both[f'encoder_layers/{name}']
    assert abs(np.corrcoef(own.ravel(), other.ravel())[0, 1]) < 0.2, name
  query, cross = (np.ravel(both[f'layers/{a}/query']) for a in ('attention', 'cross_attention'))
  assert abs(np.corrcoef(query, cross)[0, 1]) < 0.2
  deeper = {'model.architecture': 'encoder_decoder', 'model.num_encoder_layers': 3}
  for path, leaf in initialize(battery.tiny(**deeper)).items():  # nor does its depth matter here
    if not path.startswith('encoder_layers'):
      assert leaf.tobytes() == both[path].tobytes(), path


def stacked(config: Config) -> dict[str, np.ndarray]:
  """Layer by layer, '3/ffn/up' -> its array, however layers are grouped; and the rest."""
  first = {group.name: group.first for group in count.groups(config)}
  found = {}
  for path, leaf in initialize(config).items():
    owner, _, rest = path.partition('/')
    if owner in first:
      found |= {f'{first[owner] + i}/{rest}': own for i, own in enumerate(leaf)}
    else:
      found[path] = leaf
  return found


def test_how_layers_are_grouped_changes_no_bit():
  """What two models have in the same place and shape is equal, stacked with whatever others."""
  even = stacked(battery.tiny(**{'model.num_layers': 4}))  # widths of 24
  for pattern in ('1,1,2,0', '2,1,1,1', '0,1,0,1'):
    config = battery.tiny(**{'model.num_layers': 4, 'ffn.ratios': pattern, 'ffn.d_ff': 24})
    mean = sum(map(float, pattern.split(','))) / 4
    config = resolve(config.replace(**{'ffn.d_ff': round(24 * mean)}))  # so that 1 is 24
    assert 24 in widths(config) and len(count.groups(config)) > 1
    other, shared = stacked(config), 0
    for path in set(even) & set(other):
      if even[path].shape == other[path].shape:
        assert even[path].tobytes() == other[path].tobytes(), path
        shared += 'ffn/up' in path
    assert shared == widths(config).count(24)  # the comparison had something to compare


def test_one_ffn_for_all_layers():
  one, own = (initialize(battery.tiny(**{'ffn.shared': s})) for s in (True, False))
  assert set(own) - set(one) == {'layers/ffn/up', 'layers/ffn/down'}
  assert set(one) - set(own) == {'ffn/up', 'ffn/down'}
  assert one['ffn/up'].shape == own['layers/ffn/up'].shape[1:]
  assert np.std(one['ffn/down']) == pytest.approx(np.std(own['layers/ffn/down']), rel=0.15)
  assert all(np.array_equal(one[path], own[path]) for path in set(one) & set(own))


def test_another_width_leaves_the_rest_alone():
  tiny, wide = initialize(battery.tiny()), initialize(battery.tiny(**{'ffn.d_ff': 40}))
  for path in tiny:
    assert np.array_equal(tiny[path], wide[path]) == ('ffn/' not in path), path


def test_layer_i_is_the_same_at_any_depth():
  """Residual writers are scaled by depth and by nothing else."""
  two, four = (initialize(battery.tiny(**{'model.num_layers': n})) for n in (2, 4))
  for path, leaf in two.items():
    if path.startswith('layers/'):
      scale = 2**0.5 if axes.param(path).residual else 1.0
      np.testing.assert_allclose(
        leaf, four[path][:2] * scale, rtol=1e-6 * (scale > 1), err_msg=path
      )


def test_seeds_differ_and_repeat():
  one, again, other = (initialize(battery.tiny(), seed) for seed in (0, 0, 1))
  for path in one:
    assert np.array_equal(one[path], again[path])
    assert np.array_equal(one[path], other[path]) == (axes.param(path).init != 'normal'), path


def test_jit_gives_the_same_bits_nearly():
  """XLA may fuse the scaling of a normal draw: the last bit, no more."""
  config = battery.tiny()
  key = jax.random.key(0)
  jitted = jax.jit(lambda k: params.initialize(config, k))(key)
  assert battery.largest_difference(jitted, params.initialize(config, key)) < 1e-6


def test_decay_mask_follows_the_table():
  """Matrices decay; biases, scales, slopes and terms of the scores do not."""
  matrices = {f'layers/attention/{p}' for p in ('query', 'key', 'value', 'out')}
  inner = {f'layers/ffn/{p}' for p in ('up', 'gate', 'middle_up', 'middle_gate', 'down')}
  for positions in ('learned', 'relative'):
    config = battery.tiny(**DEVIATIONS['many'] | {'model.positions': positions})
    mask = battery.flat(params.decay_mask(battery.weights(config)))
    decayed = {path for path, decays in mask.items() if decays}
    tables = {'embed/table', 'unembed/table', 'positions/table'}
    assert decayed == matrices | inner | {t for t in tables if t in mask}
