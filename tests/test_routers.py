"""Routers by hand: four tokens, three experts.

Scores are logarithms of the odds

  token   odds of expert 0, 1, 2   their sum   softmax
  0       1    4    5              10          .1  .4  .5
  1       6    3    1              10          .6  .3  .1
  2       .4   .5   .1             1           .4  .5  .1
  3       10   6    4              20          .5  .3  .2

and the sigmoid of log a is a / (1 + a).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference_moe
from tests.experts import config_of, layer_of
from transformer import health, moe, spec
from transformer.routers import Soft, TokenChoice, Tokens, route

ODDS = np.array([[1, 4, 5], [6, 3, 1], [0.4, 0.5, 0.1], [10, 6, 4]])
SOFTMAX = np.array([[0.1, 0.4, 0.5], [0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.5, 0.3, 0.2]])
ALL = (True, True, True, True)
LOG10, LOG20 = np.log(10), np.log(20)


def seen(router: str, present=ALL, ids=(0, 1, 2, 3), capacity: int = 0, **weights) -> Tokens:
  variant = spec.parse('moe.router', router)
  logits_GTE = jnp.log(jnp.asarray(ODDS, jnp.float32))[None]
  if variant.decision == 'soft':
    logits_GTE = logits_GTE[..., None]
  if variant.variant == 'hash':
    logits_GTE = None
  k = 0 if variant.decision != 'token' else variant.choices(3, 1)
  ids_GT, present_GT = jnp.array([ids], jnp.int32), jnp.array([present])
  weights = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in weights.items()}
  return Tokens(logits_GTE, present_GT, ids_GT, weights, jnp.int32(0), k, capacity, 3)


def decide(router: str, *args, **own):
  return route(spec.parse('moe.router', router), seen(router, *args, **own)).decision


def is_close(got, expected) -> bool:
  return np.allclose(got, expected, rtol=1e-5)


AFTER = [(5 / 9, 4 / 9), (2 / 3, 1 / 3), (5 / 9, 4 / 9), (5 / 8, 3 / 8)]
BEST_TWO = [(2, 1), (0, 1), (1, 0), (0, 1)]
BY_TOKEN = {
  # the two of highest softmax; .5 and .4 of .9 in all, .6 and .3, .5 and .4, .5 and .3 of .8
  'topk': (BEST_TWO, AFTER),
  'topk(renormalise=False)': (BEST_TWO, [(0.5, 0.4), (0.6, 0.3), (0.5, 0.4), (0.5, 0.3)]),
  'topk(score=after)': (BEST_TWO, AFTER),  # odds 5 : 4 whether of three or of two
  # 5/6 and 4/5; 6/7 and 3/4; 1/3 and 2/7; 10/11 and 6/7
  'topk(score=sigmoid, renormalise=False)': (
    BEST_TWO,
    [(5 / 6, 4 / 5), (6 / 7, 3 / 4), (1 / 3, 2 / 7), (10 / 11, 6 / 7)],
  ),
  # 25/30 : 24/30, 24/28 : 21/28, 7/21 : 6/21, 70/77 : 66/77
  'topk(score=sigmoid)': (
    BEST_TWO,
    [(25 / 49, 24 / 49), (8 / 15, 7 / 15), (7 / 13, 6 / 13), (35 / 68, 33 / 68)],
  ),
  'topk(k=1, renormalise=False)': ([(2,), (0,), (1,), (0,)], [(0.5,), (0.6,), (0.5,), (0.5,)]),
  'switch': ([(2,), (0,), (1,), (0,)], [(0.5,), (0.6,), (0.5,), (0.5,)]),
  'random': (BEST_TWO, AFTER),
  'dense': ([(0, 1, 2)] * 4, SOFTMAX),
}


@pytest.mark.parametrize('router', BY_TOKEN)
def test_tokens_choose(router):
  experts_TR, weights_TR = BY_TOKEN[router]
  found = decide(router)
  assert found.experts_GTR[0].tolist() == [list(row) for row in experts_TR]
  assert is_close(found.weights_GTR[0], weights_TR)


def test_a_bias_changes_the_choice_and_no_weight():
  """Sigmoids plus (0, −1, 1) rank 2 before 0 before 1 for all four tokens, 1 being below 0.

  Weights are of sigmoids alone: 5/6 : 1/2, 1/2 : 6/7, 1/11 : 2/7 and 4/5 : 10/11.
  """
  found = decide('bias', router_bias=[0, -1, 1])
  assert found.experts_GTR[0].tolist() == [[2, 0]] * 4
  expected = [(5 / 8, 3 / 8), (7 / 19, 12 / 19), (7 / 29, 22 / 29), (22 / 47, 25 / 47)]
  assert is_close(found.weights_GTR[0], expected)
  without = decide('bias', router_bias=[0, 0, 0])
  assert without.experts_GTR[0].tolist() == [list(row) for row in BEST_TWO]
  assert is_close(without.weights_GTR[0], BY_TOKEN['topk(score=sigmoid)'][1])


@pytest.mark.parametrize(
  ('router', 'experts_TR'),
  [
    # A number modulo 3 is the sum of its hexadecimal digits modulo 3: of 0, 52, 43 and 53.
    ('hash', [(0,), (1,), (1,), (2,)]),
    ('hash(k=2)', [(0, 1), (1, 2), (1, 2), (2, 0)]),
  ],
)
def test_a_hash_by_the_published_values_of_murmur(router, experts_TR):
  """Ids that the first layer's number makes 0, 1, 2 and 4, modulo 2³²."""
  numbers = (0, 1, 2, 4)
  assert [reference_moe.murmur(n) for n in numbers] == [0, 0x514E28B7, 0x30F4C306, 0x249CB285]
  found = decide(router, ids=[2**32 - 0x9E3779B9 + n for n in numbers])
  assert found.experts_GTR[0].tolist() == [list(row) for row in experts_TR]
  assert is_close(found.weights_GTR, 1 / len(experts_TR[0]))


def test_hashes_of_layers_differ_and_are_even():
  tokens = seen('hash', present=[True] * 3000, ids=range(3000))
  variant = spec.parse('moe.router', 'hash')
  by_layer = [
    np.asarray(route(variant, tokens._replace(layer=jnp.int32(i))).decision.experts_GTR).ravel()
    for i in range(2)
  ]
  # 3000 draws of 1/3: a deviation of 26
  assert all(abs(n - 1000) < 105 for e in by_layer for n in np.bincount(e, minlength=3))
  assert abs(np.mean(by_layer[0] == by_layer[1]) - 1 / 3) < 0.035


def test_a_balanced_hash_deals_out_ids_by_frequency():
  """Ids 1, 0, 2, 3 occur 9, 5, 4 and 3 times: 1 goes to expert 0, 0 to 1, 2 to 2.

  Of the loads 9, 5 and 4 the least is that of 2, where 3 goes, too.
  """
  config = config_of('hash(balanced=True)', **{'moe.experts': 3, 'model.vocab_size': 4})
  state = _state(config)
  state = health.with_tables(config, state, np.array([5, 9, 4, 3]))
  table_V = state.model_state['layers']['ffn']['router_table'][0]
  found = decide('hash(balanced=True)', router_table=table_V)
  assert found.experts_GTR[0].tolist() == [[1], [0], [2], [2]]
  assert is_close(found.weights_GTR, 1)
  found = decide('hash(k=2, balanced=True)', router_table=table_V)
  assert found.experts_GTR[0].tolist() == [[1, 2], [0, 1], [2, 0], [2, 0]]


def _state(config):
  from transformer import params, state

  kept = params.initialize_kept(config, jax.random.key(0))
  fields = dict.fromkeys(state.TrainState.__dataclass_fields__)
  return state.TrainState(**fields | {'model_state': kept})


def test_experts_choose():
  """Two places each, of softmax: 0 takes .6 and .5, 1 takes .5 and .4, 2 takes .5 and .2."""
  found = decide('expert_choice', capacity=2)
  assert found.tokens_GEC[0].tolist() == [[1, 3], [2, 0], [0, 3]]
  assert is_close(found.weights_GEC[0], [(0.6, 0.5), (0.5, 0.4), (0.5, 0.2)])
  few = decide('expert_choice', (False, False, True, False), capacity=2)  # nothing fills a place
  assert few.tokens_GEC[0, :, 0].tolist() == [2, 2, 2]
  assert is_close(few.weights_GEC[0], [(0.4, 0), (0.5, 0), (0.1, 0)])


def test_soft_slots():
  """One slot an expert: of odds down the column, and across the row.

  Columns add up to 17.4, 13.5 and 10.1.
  """
  found = decide('soft', capacity=1)
  sent = [(5, 16, 50), (30, 12, 10), (2, 2, 1), (50, 24, 40)]
  assert is_close(found.send_GTEC[0, :, :, 0], np.array(sent) / (87, 54, 101))
  assert is_close(found.back_GTEC[0, :, :, 0], SOFTMAX)
  # Without token 3 columns add up to 7.4, 7.5 and 6.1.
  found = decide('soft', (True, True, True, False), capacity=1)
  sent = [(5, 40, 50), (30, 30, 10), (2, 5, 1), (0, 0, 0)]
  assert is_close(found.send_GTEC[0, :, :, 0], np.array(sent) / (37, 75, 61))
  assert is_close(found.back_GTEC[0, :, :, 0], [*SOFTMAX[:3], (0, 0, 0)])


@pytest.mark.parametrize('router', spec.variants('moe.router'))
def test_padding_goes_nowhere(router):
  own = {'router_bias': np.zeros(3)} if router == 'bias' else {}
  found = decide(router, (True, False, True, True), ids=(0, -1, 2, 3), capacity=2, **own)
  if isinstance(found, TokenChoice):
    assert np.all(found.experts_GTR[0, 1] == 3) and not np.any(found.weights_GTR[0, 1])
    assert np.all(found.experts_GTR[0, [0, 2, 3]] < 3)
  elif isinstance(found, Soft):
    assert not np.any(found.send_GTEC[0, 1]) and not np.any(found.back_GTEC[0, 1])
  else:
    assert 1 not in np.asarray(found.tokens_GEC)


def losses_of(router: str, *present: bool, logits=None) -> list:
  """Balance and z loss of the one group."""
  tokens = seen(router, *([present] if present else []))
  tokens = tokens if logits is None else tokens._replace(logits_GTE=logits)
  routed = route(spec.parse('moe.router', router), tokens)
  return [loss(tokens, routed)[0] for loss in moe.LOSSES.values()]


def test_losses_by_hand():
  """3 Σ f P, with P = (1.6, 1.5, .9) / 4 the means of the columns of the softmax.

  topk: of eight choices 3, 4 and 1: f = (3, 4, 1) / 8; 3 (.15 + .1875 + .028125).
  switch: of four 2, 1 and 1: f = (2, 1, 1) / 4; 3 (.2 + .09375 + .05625).
  z: sums of odds are 10, 10, 1 and 20.
  Without token 3: f = (2, 3, 1) / 6, P = (1.1, 1.2, .7) / 3; 3 · 6.5 / 18; sums 10, 10 and 1.
  """
  z = (2 * LOG10**2 + LOG20**2) / 4
  assert is_close(losses_of('topk'), (1.096875, z))
  assert is_close(losses_of('switch'), (1.05, z))
  three = (True, True, True, False)
  assert is_close(losses_of('topk', *three), (6.5 / 6, 2 * LOG10**2 / 3))
  assert losses_of('topk', False, False, False, False) == [0, 0]


def test_an_even_load_costs_1_and_one_expert_for_all_costs_their_number():
  even = jnp.log(jnp.array([[[8, 1, 1], [1, 8, 1], [1, 1, 8]]]))
  one = jnp.array([[[50.0, 0, 0]] * 3])
  there = dict(present_GT=jnp.ones((1, 3), bool), ids_GT=jnp.zeros((1, 3), jnp.int32))
  for logits_GTE, expected in ((even, 1.0), (one, 3.0)):
    tokens = seen('switch')._replace(logits_GTE=logits_GTE, **there)
    routed = route(spec.parse('moe.router', 'switch'), tokens)
    assert is_close(moe.balance_loss(tokens, routed), expected)


def test_slopes_of_losses_by_hand():
  """Of token 1, p = (.6, .3, .1), under topk.

  Balance, f being constant: 3/4 · p (f − Σ f p), f = (3, 4, 1) / 8, Σ f p = .3875.
  z: of the mean of log² Z over four, 2 log 10 / 4 · p.
  """
  logits = jnp.log(jnp.asarray(ODDS, jnp.float32))[None]
  balance, z = jax.jit(jax.jacobian(lambda x: losses_of('topk', logits=x)))(logits)
  assert is_close(balance[0, 1], (-0.005625, 0.0253125, -0.0196875))
  assert is_close(z[0, 1], LOG10 / 2 * np.array([0.6, 0.3, 0.1]))


def test_sums_by_hand():
  """Under topk and without token 3, of which one choice finds no place."""
  tokens = seen('topk', (True, True, True, False))
  routed = route(spec.parse('moe.router', 'topk'), tokens)
  found = moe.sums(tokens, routed, jnp.int32(1))
  entropy = -sum(p * np.log(p) for row in SOFTMAX[:3] for p in row)
  assert found['load'].tolist() == [2, 3, 1]
  numbers = [found[name] for name in ('dropped', 'tokens', 'entropy', 'log_z')]
  assert is_close(numbers, (1, 3, entropy, 2 * LOG10))


def test_sums_where_experts_choose_and_of_soft_slots():
  tokens = seen('expert_choice', capacity=1)  # 0 takes token 1, 1 takes 2, 2 takes 0
  found = moe.sums(tokens, route(spec.parse('moe.router', 'expert_choice'), tokens), jnp.int32(0))
  assert found['load'].tolist() == [1, 1, 1] and found['dropped'] == 1
  tokens = seen('soft', (True, True, True, False), capacity=1)
  found = moe.sums(tokens, route(spec.parse('moe.router', 'soft'), tokens), jnp.int32(0))
  assert is_close(found['load'], (1.1, 1.2, 0.7)) and found['tokens'] == 3
  assert is_close(found['log_z'], 2 * LOG10)


@pytest.mark.parametrize('router', ['switch', 'expert_choice'])
def test_jitter_multiplies_what_the_router_reads(router):
  """Of one expert, an x of 1 and a router of 1 the z loss is u², u uniform in 1 ± jitter by row."""
  changes = {'moe.experts': 1, 'moe.capacity_factor': 1.0, 'model.positions': 'none'}
  config = config_of(f'{router}(jitter=0.5)', **changes, **{'model.d_model': 1})
  weights = {'router': np.ones((1, 1), np.float32)}
  weights['experts'] = {'up': np.ones((1, 1, 5)), 'down': np.ones((1, 5, 1))}
  rows = 400
  noise_B = jax.random.split(jax.random.key(0), rows)
  x, ids = np.ones((rows, 1, 1), np.float32), np.ones((rows, 1), np.int32)

  @jax.jit
  def read(x, ids, *noise_B):
    y, aux = layer_of(config).apply({'params': weights}, x, ids, jnp.int32(0), *noise_B)
    return jnp.sqrt(aux.losses['z']), y

  u_B, y = read(x, ids, noise_B)
  assert 0.5 <= np.min(u_B) < 0.52 and 1.48 < np.max(u_B) <= 1.5
  assert np.mean(u_B) == pytest.approx(1, abs=0.06)  # four deviations of .5/√3/√400
  assert len(np.unique(u_B)) > 390
  assert np.ptp(y) < 1e-6  # where experts choose a softmax of one weighs; they read x as it is
  assert is_close(read(x, ids, noise_B[::-1])[0], u_B[::-1])  # noise belongs to the row
  assert np.all(read(x, ids)[0] == 1)  # evaluation has none
