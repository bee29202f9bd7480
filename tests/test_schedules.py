"""Schedules at points worked out by hand, as shares of the peak."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from transformer import optimizer, schedules, spec
from transformer.errors import UserError
from transformer.state import hyper_arrays

NAMES = sorted(spec.variants('optim.schedule'))
WITH_WARM_UP = ['constant', 'cosine', 'inverse_sqrt', 'linear', 'wsd']


def shares(steps: int, schedule: str, at: list[int]) -> list[float]:
  config = battery.tiny(
    **{'train.steps': steps, 'optim.schedule': schedule, 'optim.learning_rate': 0.5}
  )
  rates = [optimizer.learning_rate(config, jnp.int32(s), hyper_arrays(config)) for s in at]
  return [float(rate) / 0.5 for rate in rates]


def test_declarations_and_bodies_are_the_same_set():
  assert set(NAMES) == set(schedules.SCHEDULES)


@pytest.mark.parametrize('name', NAMES)
def test_any_schedule_is_a_finite_share_compiled_once(name):
  """Whatever the step and the length of the run; the rate of a step is peak times share."""
  short, long = (
    battery.tiny(**{'optim.schedule': name, 'train.steps': n, 'optim.learning_rate': 2.0})
    for n in (1, 100)
  )
  rate = jax.jit(lambda step, hyper: optimizer.learning_rate(short, step, hyper))
  for config in (short, long):
    got = [rate(jnp.int32(i), hyper_arrays(config)) for i in range(0, 105, 7)]
    assert np.all(np.isfinite(got)) and np.all(np.array(got) >= 0)
  assert rate._cache_size() == 1
  assert {x.dtype for x in got} == {jnp.dtype('float32')}


WARM = [0.25, 0.5, 0.75, 1]  # 4 steps of warm-up
CASES = [  # of 20 steps; (schedule, steps looked at, shares)
  ('constant(warmup=0.2)', [0, 1, 2, 3, 4, 19, 25], [*WARM, 1, 1, 1]),
  # 16 steps down to .1: halfway at 12, .1 + .9 / 2; a quarter, step 8, .1 + .9 · ¾
  ('linear(warmup=0.2, final=0.1)', [0, 1, 2, 3, 4, 8, 12, 20, 30],
   [*WARM, 1, 0.775, 0.55, 0.1, 0.1]),
  # halfway .1 + .9 · ½; a quarter .1 + .9 · ½ (1 + cos 45°)
  ('cosine(warmup=0.2, final=0.1)', [0, 1, 2, 3, 4, 8, 12, 20, 30],
   [*WARM, 1, 0.868198, 0.55, 0.1, 0.1]),
  # the n-th step, n = step + 1: √(4 / n), so ½ at n = 16 and √(4 / 20) at the last
  ('inverse_sqrt(warmup=0.2)', [0, 1, 2, 3, 4, 8, 15, 19],
   [*WARM, 0.894427, 2 / 3, 0.5, 0.447214]),
  # 5 steps of decay from step 15 on: a fifth less each, to .5
  ('wsd(warmup=0.2, decay=0.25, final=0.5)', [0, 1, 2, 3, 4, 14, 15, 16, 19, 20, 30],
   [*WARM, 1, 1, 1, 0.9, 0.6, 0.5, 0.5]),
  # 1 − √x: a fifth of the way 1 − .447214, four fifths 1 − .894427
  ('wsd(warmup=0.2, decay=0.25, power=0.5)', [3, 14, 15, 16, 19, 20],
   [1, 1, 1, 0.552786, 0.105573, 0]),
]  # fmt: skip


@pytest.mark.parametrize(('schedule', 'at', 'expected'), CASES, ids=[c[0] for c in CASES])
def test_by_hand(schedule, at, expected):
  assert shares(20, schedule, at) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(('schedule', 'at', 'expected'), CASES, ids=[c[0] for c in CASES])
def test_a_step_off_would_be_seen(schedule, at, expected):
  """Negative control."""
  assert shares(20, schedule, [s + 1 for s in at]) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('name', WITH_WARM_UP)
def test_without_warm_up_the_first_step_is_the_peak(name):
  got = shares(10, f'{name}(warmup=0)', list(range(10)))
  assert got[0] == 1 and np.all(np.diff(got) <= 0) and np.all(np.array(got) > 0)


@pytest.mark.parametrize('name', WITH_WARM_UP)
def test_at_their_ends(name):
  assert shares(1, name, [0]) == pytest.approx([1])
  full = f'{name}(warmup=1, decay=0)' if name == 'wsd' else f'{name}(warmup=1)'
  assert shares(4, full, [0, 1, 2, 3]) == pytest.approx(WARM)


def test_inverse_sqrt_against_the_paper():
  """§5.3: min(n^−½, n · w^−1.5), here divided by w^−½, its value at n = w."""
  n, w = np.arange(1, 41.0), 8
  expected = np.minimum(n**-0.5, n * w**-1.5) / w**-0.5
  assert shares(40, 'inverse_sqrt(warmup=0.2)', range(40)) == pytest.approx(expected, rel=1e-6)


def test_cosine_at_its_ends():
  assert shares(10, 'cosine(warmup=0, final=0)', [0, 5, 10]) == pytest.approx([1, 0.5, 0], abs=1e-7)
  assert shares(10, 'cosine(final=1)', [1, 5, 9]) == pytest.approx([1, 1, 1])


def test_wsd_may_decay_all_the_way_or_not_at_all():
  assert shares(4, 'wsd(warmup=0, decay=1)', [0, 1, 2, 3]) == pytest.approx([1, 0.75, 0.5, 0.25])
  assert shares(4, 'wsd(warmup=0, decay=0)', [0, 3]) == pytest.approx([1, 1])


@pytest.mark.parametrize(
  ('schedule', 'text'),
  [
    (
      'wsd(warmup=0.5, decay=0.75)',
      '--optim.schedule=wsd(warmup=0.5, decay=0.75): warmup and decay are 1.25 of the steps; '
      'they should be 1 at most',
    ),
    (
      'linear(warmup=2)',
      '--optim.schedule=linear(warmup=2): warmup: 2.0 is above the most allowed, 1.0',
    ),
    (
      'constant(final=0.1)',
      "--optim.schedule=constant(final=0.1): constant has no argument 'final'; choose from warmup",
    ),
    (
      'wsd(power=0)',
      '--optim.schedule=wsd(power=0): power: 0.0 is below the least allowed, 0.01',
    ),
  ],
)
def test_mistakes(schedule, text):
  with pytest.raises(UserError) as e:
    battery.tiny(**{'optim.schedule': schedule})
  assert str(e.value) == text
