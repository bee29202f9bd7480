"""What variants hold equal by --match, how near they come to it, and how much of it is experts'."""

from __future__ import annotations

from transformer.analysis import formats
from transformer.analysis.results import Results, Variant

TOLERANCE = 0.005  # of a matched budget
BUDGETS = {  # --match -> its number in experiment.json, and in words
  'params': ('params', 'parameters'),
  'active': ('active_params', 'active parameters'),
  'flops': ('flops_per_token', 'training FLOPs per token'),
}


def held(results: Results) -> list[Variant]:
  """Variants that keep the budget; an experiment may match some in something else."""
  return [v for v in results.variants if v.asked('matched') is not False]


def sentence(results: Results) -> str:
  """'equal parameters (319,968)', or by how much the variants differ; of experts also the other."""
  key, what = BUDGETS.get(results.match, BUDGETS['params'])
  kept = held(results)
  values = [v.asked(key) for v in kept if v.asked(key)]
  if not values:
    return ''
  low, high = min(values), max(values)
  several = len(results.variants) > 1
  if not several:
    told = f'{formats.count(low)} {what}'
  elif low == high:
    told = f'equal {what} ({formats.count(low)})'
  elif results.match in BUDGETS:
    told = f'{what} equal within {100 * (high - low) / low:.2g} % ({_span(values)})'
  else:
    told = f'{what} not matched ({_span(values)})'
  if others := [v for v in results.variants if v not in kept]:
    told += f' but for {formats.listing([results.label(v.name) for v in others])}'
  return f'{told}{_other(results, key)}'


def _other(results: Results, key: str) -> str:
  """With experts, what a token meets beside what there is, or the other way round."""
  mixtures = [v for v in results.variants if v.asked('experts')]
  other, what = ('params', 'in all') if key == 'active_params' else ('active_params', 'active')
  values = [v.asked(other) for v in mixtures if v.asked(other)]
  if not values:
    return ''
  whose = 'mixtures of ' if len(results.variants) > len(mixtures) else ''
  return f', {whose}{_span(values)} {what}'


def _span(values: list[int]) -> str:
  low, high = min(values), max(values)
  return formats.count(low) if low == high else f'{formats.count(low)} to {formats.count(high)}'


def experts(results: Results) -> str:
  """'8 experts, 1 to 2 a token'; '' where all is dense."""
  mixtures = [v for v in results.variants if v.asked('experts')]
  if not mixtures:
    return ''
  used = sorted({v.asked('experts_per_token') for v in mixtures})
  each = f'{used[0]:.3g}' if len(used) == 1 else f'{used[0]:.3g} to {used[-1]:.3g}'
  return f'{_span([v.asked("experts") for v in mixtures])} experts, {each} a token'


def unmatched(results: Results) -> str:
  """For a caption: how far apart the variants' budgets are where none is held equal."""
  if results.match in BUDGETS:
    return ''
  spans = []
  for key, what in (('params', 'parameters'), ('flops_per_token', 'FLOPs per token')):
    values = [v.asked(key) for v in results.variants if v.asked(key)]
    if values and min(values) < max(values):
      spans.append(f'{formats.short(min(values))} to {formats.short(max(values))} {what}')
  return f'Not matched: {" and ".join(spans)}.' if spans else ''


def off_target(results: Results, variant: Variant) -> float | None:
  """Achieved over target minus one; the target is the baseline's, where it keeps the budget."""
  if results.match not in BUDGETS:
    return None
  key, _ = BUDGETS[results.match]
  kept = sorted(held(results), key=lambda v: v.name != results.baseline)
  target, achieved = kept and kept[0].asked(key), variant.asked(key)
  return achieved / target - 1 if achieved and target else None


def missed(results: Results) -> list[Variant]:
  """Those that should keep the budget and are over the tolerance off it."""
  return [v for v in held(results) if abs(off_target(results, v) or 0) > TOLERANCE]
