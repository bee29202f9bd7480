"""The moving average of the weights: how it moves, what reads it, what leaves it alone.

optim.ema: e ← d e + (1 − d) p with d = min(decay, (1 + t) / (10 + t)) after t steps.
"""

from __future__ import annotations

import contextlib

import jax
import numpy as np

from tests import battery
from tests.test_step import batch_of, compiled, create, train
from transformer import step
from transformer.checkpoint import Checkpoints, load_params

CONFIG = battery.tiny(**{'optim.ema': 0.2, 'optim.learning_rate': 0.02})


def test_by_hand():
  """d is 1/10 and 2/11 at first, then the .2 asked for (3/12 would be more)."""
  current = create(CONFIG)
  weights = [battery.flat(current.params)]
  for i in range(4):
    current, _ = compiled(CONFIG)(current, batch_of(CONFIG, i))
    weights.append(battery.flat(current.params))
  for path, got in battery.flat(current.ema).items():
    ema = np.float64(weights[0][path])
    for decay, now in zip((1 / 10, 2 / 11, 0.2, 0.2), weights[1:], strict=True):
      ema = decay * ema + (1 - decay) * now[path]
    np.testing.assert_allclose(got, ema, atol=1e-6)
    assert got.dtype == np.float32
  assert battery.largest_difference(current.ema, current.params) > 1e-3  # negative control


def test_it_changes_no_step_and_is_what_gets_evaluated():
  plain, _ = train(battery.tiny(**{'optim.learning_rate': 0.02}))
  got, _ = train(CONFIG)
  assert battery.largest_difference(plain.params, got.params) < 1e-6  # of two programs
  assert plain.ema == {} and battery.same_bits(plain.eval_params, plain.params)
  assert battery.same_bits(got.eval_params, got.ema)


def test_a_bad_step_leaves_it_alone():
  good, _ = compiled(CONFIG)(create(CONFIG), batch_of(CONFIG))
  broken = good.replace(params=battery.poke(jax.device_get(good.params), 'embed/table', np.nan))
  after, _ = compiled(CONFIG)(broken, batch_of(CONFIG))
  assert int(after.bad_steps) == 1 and battery.same_bits(after.ema, good.ema)


def test_it_begins_at_the_weights_in_memory_of_its_own():
  """A step gives up the old state's memory: an array in it twice would be given up twice."""
  current = create(CONFIG)
  assert battery.same_bits(current.ema, current.params)
  train_step = jax.jit(lambda s, b: step.train_step(CONFIG, s, b, lambda x: x), donate_argnums=0)
  current, _ = train_step(current, batch_of(CONFIG))
  assert int(train_step(current, batch_of(CONFIG))[0].step) == 2


def test_there_and_back_through_a_checkpoint(tmp_path):
  after, _ = train(CONFIG, steps=2)
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(after, {}, None)
    checkpoints.wait()
    restored, _ = checkpoints.restore(create(CONFIG))
  assert battery.same_bits(restored, after)
  saved, weights = load_params(tmp_path)
  assert saved == 2 and battery.same_bits(weights, after.ema)
