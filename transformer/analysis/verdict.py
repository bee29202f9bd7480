"""The answer in plain sentences, saying no more than the finished cells support.

Sentences carry names between backticks; each way of showing them decides what that looks like.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from transformer.analysis import budget, comparable, formats, grid, learned, stats
from transformer.analysis.conditions import conditions, span
from transformer.analysis.measures import BITS
from transformer.analysis.results import AHEAD, Cell, Results, Variant


@dataclass(frozen=True)
class Answer:
  """Where it was found, what was found there, and what else there is to say about it."""

  where: str  # '' where nothing is finished
  found: str
  details: tuple[str, ...]


def answer(results: Results) -> Answer:
  """What won, what tied, what would settle it, what to mistrust."""
  if not any(v.loss.n for v in results.variants):
    return Answer('', 'No cell is finished yet, so there is no answer.', tuple(_doubts(results)))
  if len(results.variants) == 1:
    found = _single(results)
  elif not results.baseline:
    found = _without_baseline(results)
  else:
    found = _against_baseline(results)
  unlike = not_compared(results)
  details = [*comparable.sentences(results), *_ahead(results), *_measure(results)]
  details += [*([] if unlike else grid.sentences(results)), *found[1:]]
  details += [*learned.sentences(results), *_doubts(results), _caveat(results)]
  unit = f', in held-out {results.measure.unit}' if results.baseline else ''
  return Answer(f'At {conditions(results)}{unit}', found[0], tuple(details))


def sentences(results: Results) -> list[str]:
  """The answer as running text."""
  a = answer(results)
  return [f'{a.where}: {a.found}' if a.where else a.found, *a.details]


def _ahead(results: Results) -> list[str]:
  """What the mark at a name says."""
  found = [v for v in results.variants if v.looks_ahead]
  if not found:
    return []
  return [
    f'{AHEAD.strip()} Routing looks ahead in {_names(results, found)}: which experts a token meets '
    'depends on tokens behind it, which are to be predicted. A win of that is void.'
  ]


def _measure(results: Results) -> list[str]:
  """Why not nats per token, and what equal tokens of unlike tokenizers hide."""
  if results.measure is not BITS:
    return []
  told = 'Judged in bits per byte: nats per token of different tokenizers do not compare'
  sizes = sorted({size for c in results.cells if (size := _bytes(results, c))})
  if not sizes:
    return [f'{told}.']
  what = 'targets' if results.pairs else 'text'
  return [f'{told}. Each trains on {span([formats.short(s, "B") for s in sizes])} of {what}.']


def _bytes(results: Results, cell: Cell) -> float | None:
  """Of text that a cell trains on, each time it comes by."""
  data = cell.provenance.get('data') or {}
  size, many = data.get('train_bytes'), data.get(f'train_{results.unit}')
  amount = results.amount(cell)
  return amount * size / many if amount and size and many else None


def _single(results: Results) -> list[str]:
  variant = results.variants[0]
  bits = variant.sample(BITS.key)
  also = f' ({formats.with_interval(bits)} bits per byte)' if bits.n else ''
  also = also if results.measure is not BITS else ''
  loss = formats.with_interval(variant.loss)
  return [f'the held-out loss is {loss} {results.measure.unit}{also}.']


def _without_baseline(results: Results) -> list[str]:
  shown = [v for v in results.variants if v.loss.n]
  fair = [v for v in shown if not v.looks_ahead]
  best = min(fair or shown, key=lambda v: v.loss.mean)
  loss = formats.with_interval(best.loss)
  unit = results.measure.unit
  besides = 'besides what looks ahead, ' if 0 < len(fair) < len(shown) else ''
  found = f'{besides}the lowest mean held-out loss is {loss} {unit}, by {_name(results, best)}.'
  few = [v for v in results.variants if v.loss.n < stats.MIN_SEEDS]
  return [found, *_leaders(results), *_too_few(results, few)]


def _too_few(results: Results, few: list[Variant]) -> list[str]:
  if not few:
    return []
  who = 'any variant' if len(few) == len(results.variants) else _names(results, few)
  return [f'Too few seeds for a verdict on {who}: it takes {stats.MIN_SEEDS}.']


def _against_baseline(results: Results) -> list[str]:
  others = [v for v in results.variants if v.difference and v.difference.sample.n]
  others.sort(key=lambda v: v.difference.sample.mean)
  groups = {
    name: [v for v in others if v.difference.verdict == name]
    for name in ('better', 'tie', 'worse', 'void')
  }
  base, parts = f'`{results.label(results.baseline)}`', []
  if better := groups['better']:
    parts.append(f'{_differences(results, better)} beat{_s(better)} {base}')
  if worse := groups['worse'][::-1]:
    parts.append(f'{_differences(results, worse)} {_is(worse)} worse than {base}')
  if ties := groups['tie']:
    parts.append(f'{_differences(results, ties)} {"ties" if len(ties) == 1 else "tie"} with {base}')
  if void := groups['void']:
    parts.append(f'{_differences(results, void)} {_is(void)} void: the lower loss looks ahead')
  if not parts and (unlike := not_compared(results)):
    return [f'no verdict, {unlike[0].difference.verdict}.', *_first_look(results, others)]
  if not parts:
    return ['too few seeds for a verdict.', *_first_look(results, others)]
  differences = [(v, v.difference) for v in results.variants if v.difference]
  few = [v for v, d in differences if d.p is None and not d.obstacle]
  return [
    '; '.join(parts) + '.',
    *_too_few(results, few),
    *_leaders(results),
    *_settle(results, ties),
  ]


def not_compared(results: Results) -> list[Variant]:
  """Those that are not comparable with the baseline."""
  return [v for v in results.variants if v.difference and v.difference.obstacle]


def _first_look(results: Results, shown: list[Variant]) -> list[str]:
  """With too few seeds: the means, called what they are."""
  if not shown:
    return []
  base = results.label(results.baseline)
  what = 'difference to {} is that of' if len(shown) == 1 else 'differences to {} are'
  return [
    f'So far, without an interval, the {what.format(f"`{base}`")} {_differences(results, shown)} '
    f'{results.measure.unit}.'
  ]


def _differences(results: Results, variants: list[Variant]) -> str:
  shown = ((v, formats.with_interval(v.difference.sample, sign=True)) for v in variants)
  return formats.listing(
    [f'{_name(results, v)} ({text})' for v, text in shown], most=_most(results)
  )


def _leaders(results: Results) -> list[str]:
  """Which of the others cannot be told from the best; nothing where the best is not worth it."""
  by_name = {v.name: v for v in results.variants}
  found = [by_name[name] for name in results.leaders]
  if not found:
    return []
  best, ties = found[0], found[1:]
  left_out = [f'`{results.label(results.baseline)}`'] if results.baseline else []
  left_out += ['what looks ahead'] if any(v.looks_ahead for v in results.variants) else []
  besides = f' besides {formats.listing(left_out)}' if left_out else ''
  start = f'The lowest mean{besides} is that of {_name(results, best)}'
  if not ties:
    return [f'{start}, clear of every other variant.']
  return [f'{start}; these runs do not part {_names(results, ties)} from it.']


def _settle(results: Results, ties: list[Variant]) -> list[str]:
  """How many seeds the ties would take."""
  if not ties:
    return []
  many = [settle_text(v.difference.settle) for v in ties]
  many[0] += ' paired seeds'
  found = [f'{n} for {_name(results, v)}' for n, v in zip(many, ties, strict=True)]
  text = [
    'To show a difference of the size seen, if it is the true one and the only one tested, would '
    'take about '
    f'{formats.listing(found, most=_most(results))}.'
  ]
  nearly = [v for v in ties if v.difference.lost_to_holm]
  if nearly:
    text.append(
      f'The interval of {_names(results, nearly)} leaves out zero, but that is not enough over '
      f'{len(results.variants) - 1} comparisons (Holm).'
    )
  return text


def settle_text(seeds: float | None) -> str:
  """'9', '> 64', –."""
  if seeds is None:
    return formats.NONE
  return f'> {stats.CAP}' if math.isinf(seeds) else f'{seeds:.0f}'


def _doubts(results: Results) -> list[str]:
  found = []
  for (variant, seed), away in results.outliers.items():
    where = f'{formats.loss(abs(away))} {results.measure.unit} {"above" if away > 0 else "below"}'
    found.append(
      f'Seed {seed} of `{results.label(variant)}` lies {where} the median of its siblings; it is '
      'kept, look at its curve.'
    )
  if off := budget.missed(results):
    names, over = _names(results, off), f'over {100 * budget.TOLERANCE:g} %'
    found.append(f'{names} {_is(off)} {over} off the matched budget.')
  found += _besides(results)
  failed = len(results.by_state('failed'))
  open_ = len(results.by_state('unfinished', 'waiting'))
  if failed:
    found.append(f'Failed, and missing above: {failed} of {len(results.cells)} cells.')
  if open_:
    found.append(f'Provisional: {open_} of {len(results.cells)} cells are not finished.')
  return found


def _besides(results: Results) -> list[str]:
  if not results.besides or not_compared(results):
    return []
  names = formats.listing([f'`{name}`' for name in results.besides], most=_most(results))
  what = formats.listing([f'`{name}`' for name in results.by])
  return [f'Groups differ not only in {what} but also in {names}: a difference may be due to that.']


def _caveat(results: Results) -> str:
  if len(results.variants) == 1:
    return 'One run has no error bar: seeds differ, so compare with paired seeds, not with this.'
  rates = results.settings('optim.learning_rate')
  tuned = 'one learning rate for all, tuned for none' if len(rates) == 1 else 'these rates'
  if 'optim.learning_rate' in results.by:
    tuned = 'this schedule'
  return (
    f'This holds for this shape, this budget and {tuned}; the order, even its sign, may change '
    'with any of them.'
  )


def _most(results: Results) -> int:
  """Names in one sentence; fewer where there would be many such sentences."""
  return 8 if len(results.variants) <= 12 else 4


def _name(results: Results, variant: Variant) -> str:
  return f'`{results.label(variant.name)}`'


def _names(results: Results, variants: Iterable[Variant]) -> str:
  return formats.listing([_name(results, v) for v in variants], most=_most(results))


def _is(group: list) -> str:
  return 'is' if len(group) == 1 else 'are'


def _s(group: list) -> str:
  return 's' if len(group) == 1 else ''
