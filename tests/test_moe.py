"""A layer of experts: every router with every dispatcher that takes it, against NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, experts, reference_ffn
from tests.experts import IDS, THERE, B, D, E, F, T, X, config_of, oracle, run, weights_of
from transformer import spec
from transformer.config import routing
from transformer.errors import UserError
from transformer.ffn import FFN

ROUTERS = list(spec.variants('moe.router'))
MOVERS = ['dense', 'dropless', 'capacity', 'capacity(priority=choice)', 'capacity(priority=score)']
MOVERS += ['expert_parallel']
FEW = {'moe.capacity_factor': 0.8}  # so that some choices find no place
SIGMOID = 'topk(score=sigmoid, renormalise=False)'
TEXTS = [*(text for name in ROUTERS for text in battery.texts('moe.router', name)), SIGMOID]


def fits(router: str, mover: str) -> bool:
  decision = spec.parse('moe.router', router).decision
  return decision in spec.parse('moe.dispatch', mover).accepts


PAIRS = [(r, m) for r, m in itertools.product(ROUTERS, MOVERS) if fits(r, m)]
OTHERS = [
  (text, [m for m in MOVERS if fits(text, m)][i % sum(fits(text, m) for m in MOVERS)])
  for i, text in enumerate(text for text in TEXTS if text not in ROUTERS)
]
WHOLE = [
  (r, m)
  for r, m in itertools.product(TEXTS, MOVERS)
  if fits(r, m) and (r, m) not in PAIRS + OTHERS
]


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
    _nothing_comes_of_padding(config, got)
  assert seconds == []


def _nothing_comes_of_padding(config, got: tuple) -> None:
  y, aux, (by_weight, by_x) = got
  assert not np.any(y[~THERE]) or config.moe.shared_experts
  other = run(config, x=np.where(THERE[..., None], X, 1e3 + X).astype(np.float32))
  assert battery.same_bits((other[0][THERE], other[1]), (y[THERE], aux))
  whole = run(config, ids=np.where(THERE, IDS, 9))  # negative control: as tokens they would count
  assert np.max(np.abs(whole[0] - y)) > 1e-3
  assert whole[1].metrics['tokens'] == aux.metrics['tokens'] + np.sum(~THERE)


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
