"""Which grouped product runs: the first that agrees with the reference at the run's own shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests import battery
from transformer import moe, parallel
from transformer.ops import grouped
from transformer.ops.grouped import Shape

SHAPE = Shape(rows=64, block=8, experts=3, D=6, F=10, dtype='float32')


@pytest.fixture(autouse=True)
def nothing_settled(monkeypatch):
  monkeypatch.setattr(grouped, '_SETTLED', {})


def wrong_value(x, w, groups, block, product=None):
  return 1.01 * grouped.looped(x, w, groups, block)


@jax.custom_vjp
def _scaled(w):
  return w


_scaled.defvjp(lambda w: (w, None), lambda _, g: (1.01 * g,))


def wrong_gradient(x, w, groups, block, product=None):
  return grouped.looped(x, _scaled(w), groups, block)


def unknown_here(x, w, groups, block, product=None):
  raise NotImplementedError('no kernel\nfor this device')


@pytest.mark.parametrize('experts', [1, 3])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_those_of_this_repository_are_right(experts, dtype):
  shape = SHAPE._replace(experts=experts, dtype=dtype)
  for implementation in (grouped.looped, grouped.ragged, grouped.reference):
    assert grouped._refusal(shape, implementation) == ''


def test_what_is_wrong_or_cannot_run_is_passed_over_and_named(monkeypatch, capsys):
  tried = (unknown_here, wrong_value, wrong_gradient, grouped.looped)
  monkeypatch.setitem(grouped.IMPLEMENTATIONS, 'cpu', tried)
  assert grouped.settle(SHAPE) == 'looped'
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == 'grouped product unknown_here: not used: no kernel at 64 x 6 x 10'
  assert lines[1].startswith('grouped product wrong_value: not used: its value is off by 1.0e-02')
  assert lines[2].startswith('grouped product wrong_gradient: not used: its gradient by w is off')
  assert len(lines) == 3
  assert grouped.settle(SHAPE) == 'looped'  # and is not tried again
  assert capsys.readouterr().err == ''


def test_it_is_the_one_that_runs(monkeypatch):
  monkeypatch.setitem(grouped.IMPLEMENTATIONS, 'cpu', (grouped.ragged,))
  groups = grouped._uneven(SHAPE)
  x, w = jnp.ones((SHAPE.rows, SHAPE.D)), jnp.ones((SHAPE.experts, SHAPE.D, SHAPE.F))

  def traced() -> str:
    return str(jax.make_jaxpr(lambda x, w: grouped.grouped(x, w, groups, SHAPE.block))(x, w))

  assert 'ragged_dot' not in traced()
  assert grouped.settle(SHAPE) == 'ragged'
  assert 'ragged_dot' in traced()


def test_where_all_are_wrong_nothing_runs(monkeypatch):
  monkeypatch.setitem(grouped.IMPLEMENTATIONS, 'cpu', (wrong_value,))
  with pytest.raises(RuntimeError, match='no grouped product of cpu is right at Shape'):
    grouped.settle(SHAPE)


@pytest.mark.parametrize(
  'shape',
  [
    {},
    pytest.param({'train.accumulate': 2, 'ffn.hidden_layers': 2}, marks=pytest.mark.exhaustive),
  ],
  ids=str,
)
def test_the_shapes_are_those_of_the_run(shape, monkeypatch):
  """Every product that a step traces has been settled before."""
  from transformer import train

  config = battery.tiny(**{'moe.experts': 3, 'data.batch_size': 4} | shape)
  asked = []
  original = grouped.grouped

  def noted(x_MD, w_EDF, groups, block, product=None):
    asked.append(Shape(len(x_MD), block, *w_EDF.shape, str(x_MD.dtype)))
    return original(x_MD, w_EDF, groups, block)

  monkeypatch.setattr('transformer.dispatch.grouped', noted)
  program = train.Program(config)
  state = program.init(config)
  tokens = battery.tokens(config)
  program.eval_step(state.eval_params, program.put(tokens))
  program.train_step(state, program.put(tokens))
  shapes = moe.grouped_shapes(config, parallel.make(config).shares)
  assert set(asked) == shapes == set(grouped._SETTLED)
