"""A layer of experts: every router with every dispatcher that takes it, against NumPy."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, experts
from tests.experts import IDS, THERE, B, D, E, F, X, config_of, oracle, run, weights_of
from transformer import spec
from transformer.config import Config, moe, routing
from transformer.ffn import FFN

ROUTERS = list(spec.variants('moe.router'))
MOVERS = ['dense', 'dropless', 'capacity']
# On one device expert_parallel is capacity: with each kind of decision once.
MORE = ['capacity(priority=choice)', 'capacity(priority=score)', 'expert_parallel']
FEW = {'moe.capacity_factor': 0.8}  # so that some choices find no place
SIGMOID = 'topk(score=sigmoid, renormalise=False)'
MOVED = [*(battery.texts('moe.router', name)[-1] for name in ROUTERS if name != 'dense'), SIGMOID]


WHOLE_IDS = np.where(THERE, IDS, 9)
NOISE_B = jax.random.split(jax.random.key(3), B)


def fits(router: str, mover: str) -> bool:
  decision = spec.parse('moe.router', router).decision
  return decision in spec.parse('moe.dispatch', mover).accepts


def fitting(routers: list[str], movers: list[str]) -> list[tuple[str, str]]:
  return [pair for pair in itertools.product(routers, movers) if fits(*pair)]


PAIRS = fitting(ROUTERS, MOVERS) + fitting(['topk'], MORE)
PAIRS += fitting(['expert_choice', 'soft'], ['expert_parallel'])
TURNS = [fitting([text], MORE + MOVERS) for text in MOVED]
OTHERS = [pairs[i % len(pairs)] for i, pairs in enumerate(TURNS)]
WHOLE = [p for p in fitting(ROUTERS + MOVED, MOVERS + MORE) if p not in PAIRS + OTHERS]


def check(router: str, mover: str, **changes: object) -> None:
  """Value, gradient and padding; nothing compiles after the first call; every weight matters."""
  config = config_of(router, mover, **FEW | changes)
  expected, got = oracle(config), run(config)
  experts.check_value(expected, got)
  experts.check_gradient(config, got)
  drops = routing.router(config).decision == 'token' and routing.dispatch(config).drops
  assert (expected.sums['dropped'] > 0) >= drops  # the factor was small enough to tell
  with battery.compilations() as seconds:
    for path in battery.flat(weights_of(config)):  # negative control
      y, _, _ = run(config, experts.disturbed(weights_of(config), path))
      assert np.max(np.abs(y - expected.y_BTD)) > 1e-3, path
    nothing_comes_of_padding(config, got)
    experts_have_no_order(config, got)
  assert seconds == []


def nothing_comes_of_padding(config: Config, got: tuple) -> None:
  """Whatever it is, all else stays as it was, to the bit."""
  y, aux, _ = got
  other = run(config, x=np.where(THERE[..., None], X, 1e3 + X).astype(np.float32))
  assert battery.same_bits((other[0][THERE], other[1]), (y[THERE], aux))
  if not config.moe.shared_experts:
    assert not np.any(y[~THERE]) and not np.any(other[2][1][~THERE])
  whole = run(config, ids=np.where(THERE, IDS, 9))  # negative control: as tokens they would count
  assert np.max(np.abs(whole[0] - y)) > 1e-3
  assert whole[1].metrics['tokens'] == aux.metrics['tokens'] + np.sum(~THERE)


def experts_have_no_order(config: Config, got: tuple) -> None:
  """Other numbers for experts, and for what the router has of each, change nothing but `load`."""
  weights, order = weights_of(config), np.roll(np.arange(routing.experts(config)), 1)
  axis = {'router': 1, 'router_slots': 1, 'router_bias': 0}
  new = {n: np.take(leaf, order, axis[n]) for n, leaf in weights.items() if n in axis}
  new |= {'experts': {name: leaf[order] for name, leaf in weights['experts'].items()}}
  y, aux, (_, by_x) = run(config, weights | new)
  by_number = isinstance(routing.router(config), moe.Hash)  # which goes by numbers of experts
  same = np.allclose(y, got[0], atol=1e-5) and np.allclose(by_x, got[2][1], atol=1e-4)
  assert same != by_number
  if not by_number:
    np.testing.assert_allclose(aux.metrics['load'], got[1].metrics['load'][order], rtol=1e-5)
    for name, loss_B in aux.losses.items():
      np.testing.assert_allclose(loss_B, got[1].losses[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(('router', 'mover'), PAIRS)
def test_every_router_with_every_dispatcher(router, mover):
  check(router, mover)


@pytest.mark.parametrize(('router', 'mover'), OTHERS)
def test_every_router_with_its_arguments_moved(router, mover):
  check(router, mover)


@pytest.mark.exhaustive
@pytest.mark.parametrize(('router', 'mover'), WHOLE)
def test_every_router_with_every_dispatcher_whole_product(router, mover):
  check(router, mover)


@pytest.mark.parametrize(
  ('router', 'changes'),
  [
    ('topk', {'moe.group_size': 4}),
    ('topk', {'moe.granularity': 5, 'moe.capacity_factor': 0.9}),
    ('topk', {'moe.shared_experts': 2, 'ffn.bias': True, 'ffn.hidden_layers': 2}),
    ('expert_choice', {'moe.group_size': 4}),
    ('soft', {'moe.group_size': 4, 'moe.shared_experts': 1}),
  ],
)
def test_groups_granularity_and_shared_experts(router, changes):
  check(router, 'capacity', **changes)


def ffn_of(config: Config, d_ff: int = F, **shape: object):
  """(weights, x, noise_B) -> y of a dense network of its activation, and the gradients by both."""
  ffn = FFN(d_ff, config.ffn.activation, dropout=config.ffn.dropout, **shape)

  def both(weights: dict, x: jax.Array, *noise_B: jax.Array) -> tuple:
    y, back = jax.vjp(lambda w, x: ffn.apply({'params': w}, x, *noise_B)[0], weights, x)
    return y, *back(experts.SLOPE)

  return jax.jit(both)


def of_expert(weights: dict, e: int) -> dict:
  return {name: leaf[e] for name, leaf in weights.items()}


def apart(one: object, other: object) -> float:
  return battery.largest_difference(one, other)


@pytest.mark.parametrize(
  ('mover', 'noises'),
  [('dense', [(NOISE_B,)]), ('dropless', [(), (NOISE_B,)]), ('capacity', [(NOISE_B,)])],
)
def test_one_expert_is_a_dense_network(mover, noises):
  """With the same dropout of the same tokens; its router gets no gradient, being 1 anyway."""
  changes = {'moe.experts': 1, 'moe.capacity_factor': 1.0, 'ffn.dropout': 0.4}
  config = config_of('switch', mover, **changes, **{'ffn.activation': 'swiglu', 'ffn.bias': True})
  weights, dense = weights_of(config), ffn_of(config, bias=True)
  for noise in noises:
    got = run(config, weights, *noise, ids=WHOLE_IDS, losses=0.0)
    y, (by_weight, by_x) = got[0], got[2]
    expected = dense(of_expert(weights['experts'], 0), X, *noise)
    assert apart((y, of_expert(by_weight['experts'], 0), by_x), expected) < 1e-5
    assert not np.any(by_weight['router'])
    for name in weights['experts']:  # negative control: in value, and in gradient
      poked = battery.stir(weights, f'experts/{name}')
      y, _, (by_weight, _) = run(config, poked, *noise, ids=WHOLE_IDS, losses=0.0)
      assert apart(y, expected[0]) > 1e-3
      seen = apart(of_expert(by_weight['experts'], 0), expected[1]) > 1e-3
      assert seen or name == 'down_bias'  # of which y is linear
  assert apart(dense(of_expert(weights['experts'], 0), X)[0], expected[0]) > 0.1  # dropout was on


@pytest.mark.parametrize(('router', 'mover'), [('dense', 'dropless'), ('hash(k=4)', 'dense')])
def test_equal_weights_give_the_mean_of_networks(router, mover):
  config = config_of(router, mover)
  weights, dense = weights_of(config), ffn_of(config)
  if 'router' in weights:
    weights = weights | {'router': np.zeros_like(weights['router'])}
  each = [dense(of_expert(weights['experts'], e), X) for e in range(E)]
  y, by_weight, by_x = jax.tree.map(lambda *z: np.stack(z) / E, *each)
  got = run(config, weights, ids=WHOLE_IDS, losses=0.0)
  assert apart((got[0], got[2][1]), (y.sum(axis=0), by_x.sum(axis=0))) < 1e-5
  assert apart(got[2][0]['experts'], by_weight) < 1e-5
  poked = run(config, battery.stir(weights, 'experts/up'), ids=WHOLE_IDS, losses=0.0)
  assert apart(poked[0], y.sum(axis=0)) > 1e-3 and apart(poked[2][0]['experts'], by_weight) > 1e-3


def test_three_dispatchers_that_drop_nothing_are_one():
  """In value and in gradient by x, router and experts."""
  dense, dropless, few = (run(config_of('topk', m, **FEW)) for m in MOVERS[:3])
  capacity = run(config_of('topk', 'capacity', **{'moe.capacity_factor': 2.0}))
  assert apart(dense, dropless) < 2e-5 and apart(dense, capacity) < 2e-5
  config = config_of('topk', 'dropless', **FEW)
  poked = run(config, battery.stir(weights_of(config), 'router'))
  assert few[1].metrics['dropped'] > 0
  for other in (few, poked):  # negative controls
    assert apart(dense[0], other[0]) > 1e-3 and apart(dense[2], other[2]) > 1e-3


@pytest.mark.parametrize('mover', ['dropless', 'capacity'])
def test_a_network_split_into_experts_that_are_all_chosen_is_whole(mover):
  """Granularity 2 halves each expert; with a router of zeros each half weighs 1/2."""
  changes = {'moe.experts': 1, 'moe.granularity': 2, 'ffn.d_ff': 2 * F, 'moe.capacity_factor': 1.0}
  config = config_of('switch', mover, **changes, **{'ffn.activation': 'swiglu'})
  weights = weights_of(config) | {'router': np.zeros((D, 2), np.float32)}

  def joined(halves: dict) -> dict:
    return {n: np.concatenate(leaf, axis=0 if n == 'down' else 1) for n, leaf in halves.items()}

  y, *by = ffn_of(config, 2 * F)(joined(weights['experts']), X)
  got = run(config, weights, ids=WHOLE_IDS, losses=0.0)
  found = got[0], joined(got[2][0]['experts']), got[2][1]
  assert apart(jax.tree.map(lambda z: 2 * z, found), (y, *by)) < 2e-5
  poked = run(config, battery.stir(weights, 'router'), ids=WHOLE_IDS, losses=0.0)
  assert apart(2 * poked[0], y) > 1e-3 and apart(2 * poked[2][1], by[1]) > 1e-3


def test_shared_experts_add_a_network_of_all_tokens():
  config = config_of('topk', 'dropless', **FEW)
  with_them = config_of('topk', 'dropless', **FEW, **{'moe.shared_experts': 3})
  weights, own = weights_of(with_them), {k: weights_of(with_them)[k] for k in ('router', 'experts')}
  assert {name: leaf.shape for name, leaf in weights['shared'].items()} == {
    'up': (D, 3 * F),
    'down': (3 * F, D),
  }
  y, by_weight, by_x = ffn_of(config, 3 * F)(weights['shared'], X)
  bare, both = run(config, own), run(with_them, weights)
  assert apart(both[0], bare[0] + y) < 1e-5 and apart(both[2][1], bare[2][1] + by_x) < 2e-5
  assert apart(both[2][0]['shared'], by_weight) < 1e-5
  assert battery.same_bits(both[1], bare[1])
  poked = run(with_them, battery.stir(weights, 'shared/up'))
  assert apart(poked[0], bare[0] + y) > 1e-3


def test_training_has_the_capacity_of_training():
  """Which noise tells, be there dropout or not."""
  factors = {'moe.capacity_factor': 0.5, 'moe.eval_capacity_factor': 1.0}
  config, dropped = config_of('topk', 'capacity', **factors), []
  for noise in ((), (NOISE_B,)):
    expected = oracle(config, training=bool(noise))
    experts.check_value(expected, run(config, None, *noise))
    dropped.append(expected.sums['dropped'])
  assert 0 < dropped[0] < dropped[1]


ACTIVATIONS = [*spec.variants('ffn.activation'), 'product(leaky_relu(0.1), prelu)']


@functools.cache
def forward(config: Config):
  """(weights, x) -> y."""
  layer = experts.layer_of(config)
  return jax.jit(lambda p, x: layer.apply({'params': p}, x, IDS, jnp.int32(0))[0])


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_every_activation_in_experts(activation):
  config = activated(activation, **{'ffn.bias': True})
  weights, expected = weights_of(config), oracle(config).y_BTD
  size = max(1.0, np.max(np.abs(expected)))
  np.testing.assert_allclose(forward(config)(weights, X), expected, atol=2e-5 * size)
  for path in battery.flat(weights):  # negative control
    other = forward(config)(battery.stir(weights, path), X)
    assert np.max(np.abs(other - expected)) > 4e-4 * size, path


def activated(activation: str, **changes: object) -> Config:
  return config_of('hash', 'dropless', **changes, **{'ffn.activation': activation})


def check_deep(activation: str) -> None:
  """Three layers with biases; rows that no token fills do no harm to the gradient."""
  config = activated(activation, **{'ffn.bias': True, 'ffn.hidden_layers': 2})
  got = run(config)
  experts.check_value(oracle(config), got)
  experts.check_gradient(config, got)


@pytest.mark.parametrize('activation', ['gelu', 'product(leaky_relu(0.1), prelu)'])
def test_three_layers_and_the_gradient_of_activations_in_experts(activation):
  check_deep(activation)


@pytest.mark.exhaustive
@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_three_layers_and_the_gradient_of_every_activation_in_experts(activation):
  check_deep(activation)


HALF = [*fitting(['topk'], MOVERS), ('expert_choice', 'dense'), ('soft', 'capacity')]


@pytest.mark.parametrize(('router', 'mover'), HALF)
def test_bfloat16_computes_in_bfloat16(router, mover):
  """But for scores: the same experts are chosen."""
  config = config_of(router, mover, **FEW)
  expected = oracle(config).y_BTD
  got = forward(config)(weights_of(config), jnp.asarray(X, jnp.bfloat16))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float64(got), expected, atol=0.04 * np.max(np.abs(expected)))
