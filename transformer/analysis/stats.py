"""Statistics of paired seeds: intervals, tests, and how many seeds would settle a difference.

A difference is always left - right of a loss, so negative means that left is better. Seeds are
paired (same data order, same shared initial values), hence everything is about the differences
seed by seed. Fewer than three seeds give no interval, no p and no verdict.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

MIN_SEEDS = 3  # below, a t interval is wider than anything one would like to say
LEVEL = 0.05
CAP = 64  # seeds_to_settle looks no further
FLIP_SEEDS = range(6, 41)  # from 6 the test can fall under .05; to 40 its exact sums fit in memory


@dataclass(frozen=True)
class Sample:
  """Values over seeds with their mean, standard deviation and 95 % t half-width.

  `mean` is nan without values, `sd` None below two, `half` None below MIN_SEEDS.
  """

  values: tuple[float, ...]
  mean: float
  sd: float | None
  half: float | None

  @property
  def n(self) -> int:
    return len(self.values)

  @property
  def low(self) -> float:
    """The lower end of the interval, of the range where there is none."""
    return min(self.values) if self.half is None else self.mean - self.half

  @property
  def high(self) -> float:
    """The upper end."""
    return max(self.values) if self.half is None else self.mean + self.half


@dataclass(frozen=True)
class Difference:
  """Loss of `left` minus loss of `right` over the seeds both have finished."""

  left: str
  right: str
  seeds: tuple[int, ...]
  sample: Sample
  p: float | None  # paired t, two-sided
  p_flip: float | None  # exact sign-flip test, where it can fall under .05
  p_holm: float | None  # p after Holm's correction over the comparisons made together
  settle: float | None  # see seeds_to_settle
  obstacle: str = ''  # why no difference is made, 'train.steps differs'
  ahead: tuple[str, ...] = ()  # of the two, those that look at tokens they are to predict

  @property
  def verdict(self) -> str:
    """'better', 'worse' or 'tie' by p_holm < .05; else why there is no test.

    'void' where the lower loss is of one that looks ahead.
    """
    if self.obstacle:
      return f'not comparable: {self.obstacle}'
    if self.p_holm is None:
      return 'too few seeds'
    if self.p_holm >= LEVEL:
      return 'tie'
    if (self.left if self.sample.mean < 0 else self.right) in self.ahead:
      return 'void'
    return 'better' if self.sample.mean < 0 else 'worse'

  @property
  def lost_to_holm(self) -> bool:
    """The interval excludes zero, but the corrected p does not fall under .05."""
    return self.verdict == 'tie' and abs(self.sample.mean) > self.sample.half


def sample(values: Iterable[float]) -> Sample:
  """Mean, standard deviation and half-width of the 95 % t interval of the mean."""
  values = tuple(float(v) for v in values)
  n = len(values)
  mean = math.fsum(values) / n if n else math.nan
  sd = float(np.std(values, ddof=1)) if n > 1 else None
  half = _t_critical(n - 1) * sd / math.sqrt(n) if n >= MIN_SEEDS else None
  return Sample(values, mean, sd, half)


@functools.cache  # curves ask for the same few at every step
def _t_critical(freedom: int) -> float:
  from scipy.stats import t

  return float(t.ppf(1 - LEVEL / 2, freedom))


def paired_t(differences: Sequence[float]) -> float | None:
  """Two-sided p of the paired t test; None below MIN_SEEDS."""
  from scipy.stats import t

  found = sample(differences)
  if found.n < MIN_SEEDS:
    return None
  if found.sd == 0:
    return 1.0 if found.mean == 0 else 0.0
  return float(2 * t.sf(abs(found.mean) / (found.sd / math.sqrt(found.n)), found.n - 1))


def sign_flip(differences: Sequence[float]) -> float | None:
  """Exact two-sided p: the share of all sign patterns whose |sum| reaches the observed one.

  None where even the smallest possible p, 2 / 2^n, is not under .05 (n < 6), and past 40 seeds.
  """
  d = np.abs(np.asarray(differences, float))
  if len(d) not in FLIP_SEEDS:
    return None
  observed = abs(math.fsum(differences)) - 1e-9 * float(d.sum())  # equal sums may round apart
  left, right = _signed_sums(d[: len(d) // 2]), np.sort(_signed_sums(d[len(d) // 2 :]))
  above = len(right) - np.searchsorted(right, observed - left)
  below = np.searchsorted(right, -observed - left, side='right')
  return min(1.0, float((above + below).sum()) / 2 ** len(d))


def _signed_sums(d: np.ndarray) -> np.ndarray:
  """The 2^n sums of ±d[0] ± d[1] …"""
  sums = np.zeros(1)
  for value in d:
    sums = np.concatenate([sums - value, sums + value])
  return sums


def holm(ps: Mapping, planned: int = 0) -> dict:
  """Holm's step-down correction: key -> p adjusted for the number of comparisons.

  planned: how many there are to be, so that those still without a p count as well.
  """
  adjusted, largest, many = {}, 0.0, max(planned, len(ps))
  for rank, (key, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
    largest = max(largest, min(1.0, (many - rank) * p))
    adjusted[key] = largest
  return adjusted


def seeds_to_settle(differences: Sequence[float], power: float = 0.8) -> float | None:
  """Paired seeds that would find the observed mean difference at 95 % with this power.

  Takes the observed mean and standard deviation for the true ones, without a correction for
  several comparisons, so it is a guide and not a promise. inf past CAP; None below MIN_SEEDS.
  """
  found = sample(differences)
  if found.n < MIN_SEEDS:
    return None
  if found.mean == 0:
    return math.inf
  if found.sd == 0:
    return MIN_SEEDS
  effect, sizes = abs(found.mean) / found.sd, range(MIN_SEEDS, CAP + 1)
  first = bisect.bisect_left(sizes, power, key=lambda n: _power(effect, n))  # it grows with n
  return sizes[first] if first < len(sizes) else math.inf


def _power(effect: float, n: int) -> float:
  """Power of the two-sided paired t test for mean / sd = effect."""
  from scipy.stats import nct

  centre, critical = effect * math.sqrt(n), _t_critical(n - 1)
  if centre > 30:  # nct loses its digits there; the power is 1 to any digit shown
    return 1.0
  return float(nct.sf(critical, n - 1, centre) + nct.cdf(-critical, n - 1, centre))


def compare(
  losses: Mapping[str, Mapping[int, float]], pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Difference]:
  """(left, right) -> Difference for each pair, corrected together by Holm.

  `losses` maps variant -> seed -> loss; a pair uses the seeds that both have.
  """
  found = {pair: _difference(losses, *pair) for pair in pairs}
  adjusted = holm({pair: d.p for pair, d in found.items() if d.p is not None}, len(found))
  return {pair: replace(d, p_holm=adjusted.get(pair)) for pair, d in found.items()}


def not_compared(left: str, right: str, obstacle: str) -> Difference:
  """In place of a difference that would say nothing."""
  return Difference(left, right, (), sample(()), None, None, None, None, obstacle)


def _difference(losses: Mapping, left: str, right: str) -> Difference:
  ours, theirs = losses.get(left, {}), losses.get(right, {})
  seeds = tuple(sorted(ours.keys() & theirs.keys()))
  d = [ours[seed] - theirs[seed] for seed in seeds]
  return Difference(
    left, right, seeds, sample(d), paired_t(d), sign_flip(d), None, seeds_to_settle(d)
  )


def indistinguishable(
  losses: Mapping[str, Mapping[int, float]], names: Sequence[str]
) -> tuple[str, ...]:
  """The lowest mean first, then those not told apart from it; () where nothing can be tested.

  All pairs among `names` are corrected together, so that it is no matter that the best one was
  picked by looking.
  """
  names = [n for n in names if len(losses.get(n, {})) >= MIN_SEEDS]
  if len(names) < 2:
    return ()
  names.sort(key=lambda n: sample(losses[n].values()).mean)
  adjusted = holm(_all_ps(losses, names), len(names) * (len(names) - 1) // 2)
  ties = [n for i, n in enumerate(names) if i and adjusted.get((0, i), 1.0) >= LEVEL]
  return (names[0], *ties)


def _all_ps(
  losses: Mapping[str, Mapping[int, float]], names: Sequence[str]
) -> dict[tuple[int, int], float]:
  """`paired_t` of every pair of names that has one, by their places: hundreds of names at once."""
  from scipy.stats import t

  seeds = sorted({seed for name in names for seed in losses[name]})
  losses_NS = np.array([[losses[n].get(seed, np.nan) for seed in seeds] for n in names])
  found: dict[tuple[int, int], float] = {}
  for i in range(len(names) - 1):
    d_NS = losses_NS[i + 1 :] - losses_NS[i]
    n_N = np.isfinite(d_NS).sum(axis=1)
    tested = np.flatnonzero(n_N >= MIN_SEEDS)
    d_NS, n_N = d_NS[tested], n_N[tested]
    mean_N, sd_N = np.nanmean(d_NS, axis=1), np.nanstd(d_NS, axis=1, ddof=1)
    with np.errstate(divide='ignore', invalid='ignore'):
      p_N = 2 * t.sf(np.abs(mean_N) / (sd_N / np.sqrt(n_N)), n_N - 1)
    p_N = np.where(sd_N == 0, np.where(mean_N == 0, 1.0, 0.0), p_N)
    found |= {(i, i + 1 + int(j)): float(p) for j, p in zip(tested, p_N, strict=True)}
  return found


def outliers(losses: Mapping[str, Mapping[int, float]], far: float) -> dict[tuple[str, int], float]:
  """(variant, seed) -> distance from its variant's median, for cells far outside their siblings.

  Far is more than 6 times the median absolute deviation, pooled over variants because a few seeds
  estimate it badly, and more than `far`. Needs 4 seeds of a variant. Named, not removed.
  """
  away = {}
  for variant, by_seed in losses.items():
    if len(by_seed) > MIN_SEEDS:
      middle = float(np.median(list(by_seed.values())))
      away |= {(variant, seed): loss - middle for seed, loss in by_seed.items()}
  if not away:
    return {}
  spread = float(np.median(np.abs(list(away.values()))))
  return {cell: d for cell, d in away.items() if abs(d) > max(6 * spread, far)}
