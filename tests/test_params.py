"""Initial parameters: by the table, from keys of their own, shared by variants bit for bit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from tests.test_count import SHAPES
from transformer import axes, model, params
from transformer.config import PRESETS, Config, resolve


@functools.cache
def initialize(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
  return battery.flat(params.initialize(config, jax.random.key(seed)))


@pytest.mark.parametrize('name', [*PRESETS, *SHAPES])
def test_the_tree_is_the_one_that_linen_makes(name):
  config = (
    resolve(Config().replace(**PRESETS[name])) if name in PRESETS else battery.tiny(**SHAPES[name])
  )
  tokens = jnp.zeros((1, 2), jnp.int32)
  ours = jax.eval_shape(lambda: params.initialize(config, jax.random.key(0)))
  linen = jax.eval_shape(lambda: model.build(config).init(jax.random.key(0), tokens))['params']
  assert jax.tree.structure(ours) == jax.tree.structure(linen)
  assert jax.tree.leaves(ours) == jax.tree.leaves(linen)  # shapes and types
  assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype('float32')}


def deviation(path: str, config: Config) -> float:
  """As DESIGN has it: 1/√fan-in, residual writers divided by √(2 · layers)."""
  d, f, heads = config.model.d_model, config.ffn.d_ff, config.model.num_heads
  depth = (2 * config.model.num_layers) ** 0.5
  return {
    'embed/table': d**-0.5,
    'positions/table': d**-0.5,
    'layers/attention/query': d**-0.5,
    'layers/attention/key': d**-0.5,
    'layers/attention/value': d**-0.5,
    'layers/attention/out': (heads * config.model.head_dim) ** -0.5 / depth,
    'layers/ffn/up': d**-0.5,
    'layers/ffn/gate': d**-0.5,
    'layers/ffn/down': f**-0.5 / depth,
  }[path]


def test_deviations_are_those_of_the_table():
  config = battery.tiny(
    **SHAPES['gated and biased'] | {'model.norm': 'layernorm', 'model.bias': True},
    **{'model.d_model': 64, 'model.num_layers': 3, 'model.head_dim': 24, 'ffn.d_ff': 150,
       'model.vocab_size': 100, 'data.seq_len': 64},
  )  # fmt: skip
  tree = initialize(config)
  for path, leaf in tree.items():
    init = axes.param(path).init
    if init != 'normal':
      assert np.all(leaf == {'zeros': 0, 'ones': 1}[init]), path
      continue
    expected = deviation(path, config)
    error = 4 / np.sqrt(2 * leaf.size)  # four deviations of an estimated deviation
    assert np.std(leaf) == pytest.approx(expected, rel=error), path
    assert abs(np.mean(leaf)) < 4 * expected / np.sqrt(leaf.size), path
    if path.startswith('layers/'):
      assert not np.any(np.isclose(leaf[0], leaf[1]).all()), f'{path}: layers are alike'
  matrices = [np.ravel(tree[f'layers/attention/{n}']) for n in ('query', 'key', 'value')]
  assert abs(np.corrcoef(matrices) - np.eye(3)).max() < 0.05  # each from its own key


def test_variants_share_what_they_have_in_common_bit_for_bit():
  relu = initialize(battery.tiny(**{'ffn.activation': 'relu'}))
  for changes in (
    {'ffn.activation': 'swiglu'},
    {'ffn.activation': 'geglu', 'ffn.bias': True, 'model.bias': True, 'model.norm': 'layernorm'},
    {'model.positions': 'learned', 'model.dropout': 0.5, 'model.dtype': 'bfloat16'},
    {'model.unroll': True, 'data.batch_size': 2, 'optim.learning_rate': 0.5},
  ):
    other = initialize(battery.tiny(**changes))
    assert relu.keys() <= other.keys()
    for path in relu:
      assert relu[path].tobytes() == other[path].tobytes(), path


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
  config = battery.tiny(**SHAPES['gated and biased'], **{'model.norm': 'layernorm'})
  mask = battery.flat(params.decay_mask(params.initialize(config, jax.random.key(0))))
  decayed = {path for path, decays in mask.items() if decays}
  assert decayed == {'embed/table', 'positions/table'} | {
    f'layers/{p}'
    for p in (
      *('attention/query', 'attention/key', 'attention/value', 'attention/out'),
      *('ffn/up', 'ffn/gate', 'ffn/down'),
    )
  }
