"""What experts begin as, and how optimizers move them: each as a layer of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from tests.test_optimizer import nest
from tests.test_parametrization import WIDE
from tests.test_params import initialize, stacked
from transformer import count, optimizer, parametrization, params
from transformer.state import hyper_arrays

FOUR = {'model.num_layers': 4, 'moe.experts': 4}


@pytest.mark.parametrize(
  'changes',
  [
    {'moe.experts': 6},
    {'moe.layers': 'every(2)'},
    {'moe.layers': '0,3', 'moe.shared_experts': 2},
    {'moe.router': 'bias', 'ffn.bias': True},
    {'moe.experts': 0},
  ],
  ids=str,
)
def test_what_models_have_in_common_begins_with_the_same_bits(changes):
  """Expert e of layer i, whatever stands beside it; dense layers, as in a model without experts."""
  whole, other = (stacked(battery.tiny(**FOUR | c)) for c in ({}, changes))
  dense, compared = stacked(battery.tiny(**FOUR | {'moe.experts': 0})), 0
  for path, leaf in other.items():
    if path in whole:
      own = whole[path]
      if '/experts/' in path:
        own, leaf = own[:4], leaf[:4]
        compared += 1
      elif path.endswith('router') and changes.get('moe.experts'):
        continue  # another shape
      assert own.tobytes() == leaf.tobytes(), path
    if path in dense:
      assert dense[path].tobytes() == leaf.tobytes(), path
  layers = sum(
    group.size for group in count.groups(battery.tiny(**FOUR | changes)) if group.experts
  )
  assert compared == 2 * layers


def test_each_expert_is_drawn_by_itself_and_as_a_dense_network_is():
  config = battery.tiny(**FOUR)
  for name, dense in (('up', 16**-0.5), ('down', (24 * 8) ** -0.5)):
    leaf = initialize(config)[f'layers/ffn/experts/{name}'].reshape(16, -1)
    np.testing.assert_allclose(np.std(leaf, axis=1), dense, rtol=0.2)
    correlation = np.corrcoef(leaf) - np.eye(16)
    assert np.max(np.abs(correlation)) < 0.25
  random = battery.tiny(**FOUR | {'moe.router': 'random'})
  kept = params.initialize_kept(random, jax.random.key(0))['layers']['ffn']['router']
  assert kept.tobytes() == initialize(config)['layers/ffn/router'].tobytes()


RNG = np.random.default_rng(0)
EXPERTS = {'up': (2, 3, 8, 6), 'down': (2, 3, 6, 8), 'up_bias': (2, 3, 6)}
TREES = [{name: np.float32(RNG.normal(size=s)) for name, s in EXPERTS.items()} for _ in range(3)]


def moved(name: str, owner: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Two steps of an optimizer on experts whose first dimensions L, E, D are seen as `shape`."""
  config = battery.tiny(**{'optim.name': name})
  first, *grads = (
    nest({f'layers/{owner}/{n}': x.reshape(*shape, *x.shape[2 + (shape[-1] < 0) :])
          for n, x in tree.items() if x.ndim == 4 or shape[-1] > 0})
    for tree in TREES
  )  # fmt: skip
  hypers, weights = hyper_arrays(config), jax.tree.map(jnp.asarray, first)
  current = optimizer.init(config, weights, hypers)
  for gradient in grads:
    rate = jnp.float32(0.1)
    scale = optimizer.clip(optimizer.global_norm(gradient), hypers)
    own = (current, weights, hypers, rate)
    weights, current = optimizer.update(config, gradient, scale, *own)
  return {path.split('/')[-1]: leaf.ravel() for path, leaf in battery.flat(weights).items()}


LONG = [
  pytest.param(name, marks=pytest.mark.exhaustive) for name in ('adamw', 'adafactor(factor_from=4)')
]


@pytest.mark.parametrize('name', ['lion', 'muon', *LONG])
def test_an_optimizer_sees_experts_as_it_sees_layers(name):
  experts, layers = moved(name, 'ffn/experts', (2, 3)), moved(name, 'ffn', (6,))
  for leaf, value in experts.items():
    np.testing.assert_allclose(value, layers[leaf], atol=1e-6, err_msg=leaf)
    assert np.max(np.abs(value - TREES[0][leaf].ravel())) > 1e-3
  if name in ('muon', 'adafactor(factor_from=4)'):  # negative control: one matrix of all
    one = moved(name, 'ffn', (2, -1))
    assert np.max(np.abs(one['up'] - experts['up'])) > 1e-3


def test_factors_of_mup_by_hand():
  """d_model 32 at a base of 8; experts of 96, split in two, and shared ones of 2 · 48."""
  moe = {'moe.experts': 4, 'moe.granularity': 2, 'moe.shared_experts': 2}
  config = battery.tiny(**WIDE | moe)
  for leaf, factor in {
    'router': 1 / 4,
    'experts/up': 1 / 4,
    'experts/gate': 1 / 4,
    'experts/down': 4 * 8 / 48,
    'experts/up_bias': 1,
    'shared/up': 1 / 4,
    'shared/down': 4 * 8 / 96,
  }.items():
    path = f'layers/ffn/{leaf}'
    assert parametrization.rate_factor(config, path) == pytest.approx(factor), path
    assert parametrization.hidden(path) == (leaf != 'router' and factor != 1), path
  soft = battery.tiny(
    **WIDE | {'moe.experts': 4, 'moe.router': 'soft', 'moe.allow_noncausal': True}
  )
  assert parametrization.rate_factor(soft, 'layers/ffn/router_slots') == 1 / 4


def test_what_decays():
  config = battery.tiny(**FOUR | {'ffn.bias': True, 'ffn.activation': 'prelu'})
  mask = battery.flat(
    params.decay_mask(nest({path: np.zeros(()) for path in count.shapes(config)}))
  )
  assert {p.partition('ffn/')[2] for p, decays in mask.items() if 'ffn/' in p and not decays} == {
    'experts/up_bias',
    'experts/down_bias',
    'experts/prelu_slope',
  }
