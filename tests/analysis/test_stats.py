"""Statistics against values derived by hand or known from tables."""

import math

import numpy as np
import pytest

from transformer.analysis import stats


def test_sample_has_the_t_interval():
  # mean 2, sd 1, standard error 1/√3; the t table has 4.302653 at .975 and 2 degrees of freedom
  found = stats.sample([1, 2, 3])
  assert (found.mean, found.sd, found.n) == (2, 1, 3)
  assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize('values', [[], [3.8], [3.8, 3.9]])
def test_few_values_have_no_interval_and_no_p(values):
  assert stats.sample(values).half is None
  assert stats.paired_t(values) is None
  assert stats.seeds_to_settle(values) is None
  assert stats.sign_flip(values) is None


def test_paired_t_by_the_closed_form_of_two_degrees_of_freedom():
  # two-sided p = 1 - t/√(2 + t²); t = 2√3, so p = 1 - √(12/14)
  assert stats.paired_t([1, 2, 3]) == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)
  assert stats.paired_t([0, 0, 0]) == 1
  assert stats.paired_t([2, 2, 2]) == 0


def test_sign_flip_counts_patterns():
  # all of one sign: only that pattern and its mirror reach the sum, 2 of 64
  assert stats.sign_flip([1, 2, 3, 4, 5, 6]) == 2 / 64
  # sum 19 of at most 21: flipping nothing (21) or the 1 (19), and their mirrors, 4 of 64
  assert stats.sign_flip([-1, 2, 3, 4, 5, 6]) == 4 / 64
  assert stats.sign_flip([0.1] * 8) == 2 / 256
  assert stats.sign_flip([0.0] * 6) == 1
  assert stats.sign_flip([1, 2, 3, 4, 5]) is None  # its floor is 2/32 = .0625


def test_sign_flip_agrees_with_enumeration():
  d = np.random.default_rng(0).normal(0.4, 1, 9)
  signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1).T
  expected = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12)
  assert stats.sign_flip(d) == expected


def test_holm_steps_down():
  # .01 × 3, then .03 × 2, then .04 × 1 but no less than the one before
  assert stats.holm({'a': 0.01, 'b': 0.04, 'c': 0.03}) == pytest.approx(
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
  )
  assert stats.holm({'a': 0.7, 'b': 0.8}) == {'a': 1.0, 'b': 1.0}


@pytest.mark.parametrize(('effect', 'seeds'), [(1.0, 10), (0.5, 34), (0.8, 15)])
def test_seeds_to_settle_are_those_of_power_tables(effect, seeds):
  # paired t, two-sided .05, power .8: Cohen's d of 1, .5, .8 need 10, 34, 15 pairs
  values = np.array([-1.0, 0, 1]) + effect  # sd 1
  assert stats.seeds_to_settle(values) == seeds


def test_seeds_to_settle_is_capped():
  assert stats.seeds_to_settle([-1, 0, 1.1]) == math.inf
  assert stats.seeds_to_settle([-1, 0, 1]) == math.inf
  assert stats.seeds_to_settle([1, 1, 1]) == stats.MIN_SEEDS


def _losses(**by_variant):
  return {name: dict(enumerate(values)) for name, values in by_variant.items()}


def test_compare_pairs_by_seed_and_decides_by_holm():
  losses = _losses(
    base=[3.80, 3.90, 3.70, 3.85],
    good=[3.70, 3.81, 3.59, 3.75],  # −.10 −.09 −.11 −.10, though the ranges overlap
    bad=[3.90, 4.01, 3.80, 3.95],
    same=[3.81, 3.89, 3.71, 3.84],
  )
  losses['good'].pop(0)
  found = stats.compare(losses, [(n, 'base') for n in ('good', 'bad', 'same')])
  assert {left: d.verdict for (left, _), d in found.items()} == {
    'good': 'better',
    'bad': 'worse',
    'same': 'tie',
  }
  good = found['good', 'base']
  assert good.seeds == (1, 2, 3)
  assert good.sample.values == pytest.approx([-0.09, -0.11, -0.10])
  assert good.p_holm == pytest.approx(2 * good.p)


def test_an_interval_without_zero_can_lose_to_holm():
  # each p is about .03, times the five comparisons is no longer under .05
  values = [-0.01, -0.02, -0.03, -0.045]
  losses = _losses(base=[0, 0, 0, 0], **{f'v{i}': values for i in range(5)})
  found = stats.compare(losses, [(f'v{i}', 'base') for i in range(5)])
  d = found['v0', 'base']
  assert d.p < 0.05 <= d.p_holm
  assert d.verdict == 'tie' and d.lost_to_holm


def test_two_seeds_get_no_verdict():
  d = stats.compare(_losses(a=[1, 2], b=[2, 3]), [('a', 'b')])['a', 'b']
  assert d.verdict == 'too few seeds'
  assert d.sample.mean == -1 and d.sample.half is None


def test_indistinguishable_names_the_best_and_its_ties():
  losses = _losses(
    second=[3.01, 2.99, 3.01, 3.00],
    best=[3.00, 3.00, 3.00, 3.00],
    far=[3.50, 3.51, 3.49, 3.50],
    unfinished=[2.0],
  )
  assert stats.indistinguishable(losses, list(losses)) == ('best', 'second')
  assert stats.indistinguishable(losses, ['unfinished']) == ()


def test_outliers_are_named():
  losses = _losses(
    a=[3.800, 3.805, 3.810, 3.741], b=[3.700, 3.706, 3.712, 3.704], c=[3.9, 3.91, 3.905, 3.902]
  )
  found = stats.outliers(losses, 0.03)
  assert list(found) == [('a', 3)]
  assert found['a', 3] == pytest.approx(3.741 - 3.8025)
  assert stats.outliers(_losses(a=[3.8, 3.7]), 0.03) == {}
  # six deviations away but within .03 nats is nothing to speak of
  near = _losses(a=[3.8, 3.8001, 3.8002, 3.82])
  assert stats.outliers(near, 0.03) == {} != stats.outliers(near, 0.015)


def test_all_pairs_at_once_have_the_p_of_each_alone():
  rng = np.random.default_rng(1)
  losses = _losses(**{f'v{i}': rng.normal(3, 0.1, 5) for i in range(6)})
  losses['v2'].pop(3)
  losses['v4'] = dict(losses['v1'])  # no difference at all
  losses['v5'] = {seed: loss + 0.25 for seed, loss in losses['v1'].items()}
  losses['v5'].pop(0), losses['v5'].pop(1), losses['v5'].pop(2)  # too few seeds
  names = list(losses)
  found = stats._all_ps(losses, names)
  for i, a in enumerate(names):
    for j, b in enumerate(names[:i]):
      pair = losses[a].keys() & losses[b].keys()
      expected = stats.paired_t([losses[a][seed] - losses[b][seed] for seed in sorted(pair)])
      assert found.get((j, i)) == (None if expected is None else pytest.approx(expected, rel=1e-9))
