"""The columns of the summary, once, for page, Markdown, CSV and terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformer.analysis import formats, inside
from transformer.analysis.budget import off_target
from transformer.analysis.measures import BITS, MASKED, NATS, SCORES, Measure
from transformer.analysis.results import Results, Variant, as_float

VERDICTS = ('better', 'worse', 'tie', 'void', 'too few seeds')


@dataclass(frozen=True)
class Column:
  """A heading, what a variant shows under it, and how soon it goes where room is short."""

  heading: str
  show: Callable[[Variant], str]
  rank: int = 0  # 0 stays, larger goes first
  text: bool = False  # left-aligned
  key: bool = False  # tells rows apart


def columns(results: Results) -> list[Column]:
  """What there is to show: budgets that do not differ, tests that were not made are left out."""
  variants = results.variants

  def differs(key: str) -> bool:
    return len({v.asked(key) for v in variants}) > 1

  found = _keys(results)
  found.append(Column('parameters', lambda v: formats.count(v.asked('params')), 3))
  if any(v.asked('experts') for v in variants):
    found.append(Column('active', lambda v: formats.count(v.asked('active_params')), 3))
  if differs('experts') or differs('experts_per_token'):
    found.append(Column('experts', _experts, 4))
  sides = any(v.asked('encoder_d_ff') not in (None, v.asked('d_ff')) for v in variants)
  if sides:
    found.append(Column('encoder d_ff', lambda v: formats.count(v.asked('encoder_d_ff')), 4))
  heading = 'decoder d_ff' if sides else 'd_ff'
  found.append(Column(heading, lambda v: formats.count(v.asked('d_ff')), 4))
  for path in ('model.num_layers', 'model.d_model'):
    key = path.partition('.')[2]
    if differs(key) and path not in results.by:
      heading = 'layers' if key == 'num_layers' else key
      found.append(Column(heading, lambda v, key=key: formats.count(v.asked(key)), 4))
  free = differs('d_model') or 'ffn.ratio' in results.by  # else d_ff tells it
  if free and differs('ratio') and not _told(results):
    found.append(Column('ratio', lambda v: _ratio(v), 5))
  if differs('flops_per_token'):
    flops = 'flops_per_token'
    found.append(Column('FLOPs/token', lambda v: formats.short(v.asked(flops)), 4))
  if any(off_target(results, v) for v in variants):
    found.append(Column('off target', lambda v: _percent(off_target(results, v)), 3))
  found.append(Column(_loss(results.measure), lambda v: formats.with_interval(v.loss)))
  if results.measure not in (BITS, MASKED):
    found.append(Column(BITS.brief, lambda v: formats.with_interval(v.sample(BITS.key)), 2))
  if results.baseline:
    found += _against(results)
  for key in _scores(results):
    show = lambda v, key=key: formats.with_interval(v.sample(key), places=1)  # noqa: E731
    found.append(Column(SCORES[key], show, 2))
  if not results.pairs:  # of which padding counts as tokens, too
    found.append(Column('tokens/s', lambda v: _mean(v, 'tokens_per_s'), 3))
  found.append(Column('seeds', lambda v: f'{len(v.losses)}/{len(v.seeds)}', 1))
  for key, heading in (('skipped_steps', 'skipped steps'), ('spikes', 'loss spikes')):
    if any(v.total(key) for v in variants):
      found.append(Column(heading, lambda v, key=key: formats.count(v.total(key)), 1))
  return found


def _scores(results: Results) -> list[str]:
  """Which scores of decoded texts there are."""
  return [key for key in SCORES if any(v.sample(key).n for v in results.variants)]


def _loss(measure: Measure) -> str:
  """The heading of what is judged."""
  return f'held-out {measure.brief}'


def _told(results: Results) -> bool:
  """Whether the variants' own names are their ratios, to 1 %."""
  if 'ffn.ratio' not in results.by:
    return False
  at = results.by.index('ffn.ratio')
  pairs = [(as_float(v.values[at]), v.asked('ratio')) for v in results.variants]
  return all(
    asked is not None and made is not None and abs(made - asked) <= 0.01 * abs(asked)
    for asked, made in pairs
  )


def _experts(variant: Variant) -> str:
  """'2 of 8': how many compute a token."""
  experts = variant.asked('experts')
  return f'{variant.asked("experts_per_token"):.3g} of {experts:,}' if experts else formats.NONE


def _ratio(variant: Variant) -> str:
  made = variant.asked('ratio')
  return formats.NONE if made is None else f'{made:.3g}'


def _keys(results: Results) -> list[Column]:
  """A column a setting that is compared; one for the name where none is."""
  if not results.by:
    return [Column('run', lambda v: v.keys[0], text=True, key=True)]
  return [
    Column(results.heading(path), lambda v, i=i: v.keys[i], text=True, key=True)
    for i, path in enumerate(results.by)
  ]


def references(results: Results, columns: list[Column]) -> list[list[str]]:
  """A row each for the unigram and bigram counts: their losses, under the columns there are."""
  rows = []
  for name in ('unigram', 'bigram'):
    if (nats := results.references.get(name)) is not None:
      bits = formats.loss(results.references.get(f'{name}_bits_per_byte'))
      loss = _loss(results.measure)
      shown = {columns[0].heading: name, loss: formats.loss(nats), BITS.brief: bits}
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
  scores, statistics = _scores(results), inside.statistics(results)
  return [_record(results, v, scores, statistics) for v in results.ranked]


_SHAPE = (
  'params',
  'active_params',
  'd_ff',
  'ratio',
  'd_model',
  'num_layers',
  'num_heads',
  'flops_per_token',
)


def _record(results: Results, v: Variant, scores: Sequence[str], statistics: Sequence[str]) -> dict:
  nats, bits, d = v.sample(NATS.key), v.sample(BITS.key), v.difference
  speed = v.sample('tokens_per_s')
  record = {'variant': v.name} | dict(zip(results.by, v.values, strict=True))
  shape = (*_SHAPE, 'encoder_d_ff') if results.pairs else _SHAPE
  if any(other.asked('experts') for other in results.variants):
    shape += ('active_params', 'experts', 'experts_per_token')
  record |= {key: v.asked(key) for key in shape}
  record['looks_ahead'] = v.looks_ahead
  record |= {
    'seeds_done': len(v.losses),
    'seeds_asked': len(v.seeds),
    'loss_mean': nats.mean if nats.n else None,
    'loss_half_width_95': nats.half,
    'loss_sd': nats.sd,
    'bits_per_byte_mean': bits.mean if bits.n else None,
    'bits_per_byte_half_width_95': bits.half,
    'bits_per_byte_sd': bits.sd,
    'judged_by': results.measure.unit,  # unit of what follows
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
    'skipped_steps': v.total('skipped_steps'),
    'loss_spikes': v.total('spikes'),
  }
  for key in scores:
    score, name = v.sample(key), key.partition('/')[2]
    record |= {f'{name}_mean': score.mean if score.n else None, f'{name}_half_width_95': score.half}
  record |= {f'ffn/{name}': inside.mean(v, name) for name in statistics}
  return {key: '' if value is None else value for key, value in record.items()}
