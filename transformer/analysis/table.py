"""The columns of the summary, once, for page, Markdown, CSV and terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformer.analysis import formats
from transformer.analysis.results import Results, Variant
from transformer.analysis.verdict import off_target

LOSS, BITS = 'held-out nats/token', 'bits/byte'
VERDICTS = ('better', 'worse', 'tie', 'too few seeds')


@dataclass(frozen=True)
class Column:
  """A heading, what a variant shows under it, and how soon it goes where room is short."""

  heading: str
  show: Callable[[Variant], str]
  rank: int = 0  # 0 stays, larger goes first
  text: bool = False  # left-aligned


def columns(results: Results) -> list[Column]:
  """What there is to show: budgets that do not differ, tests that were not made are left out."""
  variants = results.variants

  def differs(key: str) -> bool:
    return len({v.asked(key) for v in variants}) > 1

  name = results.variable.rpartition('.')[2] if results.variable else 'run'
  found = [Column(name, lambda v: v.name, text=True)]
  found.append(Column('parameters', lambda v: formats.count(v.asked('params')), 3))
  found.append(Column('d_ff', lambda v: formats.count(v.asked('d_ff')), 4))
  if differs('d_model'):
    found.append(Column('d_model', lambda v: formats.count(v.asked('d_model')), 4))
  if differs('flops_per_token'):
    flops = 'flops_per_token'
    found.append(Column('FLOPs/token', lambda v: formats.short(v.asked(flops)), 4))
  if results.match in ('params', 'flops') and any(off_target(results, v) for v in variants):
    found.append(Column('off target', lambda v: _percent(off_target(results, v)), 3))
  found.append(Column(LOSS, lambda v: formats.with_interval(v.loss)))
  bits = 'eval/bits_per_byte'
  found.append(Column(BITS, lambda v: formats.with_interval(v.sample(bits)), 2))
  if results.baseline:
    found += _against(results)
  found.append(Column('tokens/s', lambda v: _mean(v, 'tokens_per_s'), 3))
  found.append(Column('seeds', lambda v: f'{len(v.done)}/{len(v.cells)}', 1))
  if any(sum(v.sample('skipped_steps').values) for v in variants):
    skipped = 'skipped_steps'
    found.append(Column('skipped steps', lambda v: f'{sum(v.sample(skipped).values):.0f}', 1))
  return found


def references(results: Results, columns: list[Column]) -> list[list[str]]:
  """A row each for the unigram and bigram counts: their losses, under the columns there are."""
  rows = []
  for name in ('unigram', 'bigram'):
    if (nats := results.references.get(name)) is not None:
      bits = formats.loss(results.references.get(f'{name}_bits_per_byte'))
      shown = {columns[0].heading: name, LOSS: formats.loss(nats), BITS: bits}
      rows.append([shown.get(c.heading, '') for c in columns])
  return rows


def _against(results: Results) -> list[Column]:
  def difference(variant: Variant) -> str:
    if variant.difference is None:
      return 'baseline'
    return formats.with_interval(variant.difference.sample, sign=True)

  def of(show: Callable) -> Callable[[Variant], str]:
    return lambda v: show(v.difference) if v.difference else ''

  base = results.label(results.baseline)
  found = [
    Column(f'difference to {base} (− is better)', difference),
    Column('p (Holm)', of(lambda d: formats.p_value(d.p_holm)), 2),
  ]
  if any(v.difference and v.difference.p_flip is not None for v in results.variants):
    found.append(Column('p (sign flip)', of(lambda d: formats.p_value(d.p_flip)), 4))
  found.append(Column('verdict', of(lambda d: d.verdict), text=True))
  return found


def _percent(share: float | None) -> str:
  return formats.NONE if share is None else formats.signed(100 * share, 2) + ' %'


def _mean(variant: Variant, key: str) -> str:
  found = variant.sample(key)
  return formats.count(found.mean) if found.n else formats.NONE


def records(results: Results) -> list[dict]:
  """One plain record a variant, for summary.csv: full digits, ASCII, empty where unknown."""
  return [_record(results, v) for v in results.ranked]


def _record(results: Results, v: Variant) -> dict:
  bits, d = v.sample('eval/bits_per_byte'), v.difference
  speed, skipped = v.sample('tokens_per_s'), v.sample('skipped_steps')
  record = {'variant': v.name}
  record |= {key: v.asked(key) for key in ('params', 'd_ff', 'd_model', 'flops_per_token')}
  record |= {
    'seeds_done': len(v.done),
    'seeds_asked': len(v.cells),
    'loss_mean': v.loss.mean if v.done else None,
    'loss_half_width_95': v.loss.half,
    'loss_sd': v.loss.sd,
    'bits_per_byte_mean': bits.mean if bits.n else None,
    'bits_per_byte_half_width_95': bits.half,
    'baseline': results.baseline,
    'difference_mean': d.sample.mean if d and d.sample.n else None,
    'difference_half_width_95': d.sample.half if d else None,
    'difference_sd': d.sample.sd if d else None,
    'paired_seeds': d.sample.n if d else None,
    'p_paired_t': d.p if d else None,
    'p_holm': d.p_holm if d else None,
    'p_sign_flip': d.p_flip if d else None,
    'verdict': d.verdict if d else None,
    'seeds_to_settle': d.settle if d else None,
    'tokens_per_s': speed.mean if speed.n else None,
    'skipped_steps': int(sum(skipped.values)),
  }
  return {key: '' if value is None else value for key, value in record.items()}
