"""What a model learned beside counts of tokens, and what it began from."""

from __future__ import annotations

import math
import statistics

from transformer.analysis import formats
from transformer.analysis.measures import BITS, NATS
from transformer.analysis.results import Cell, Results, Variant

_FALL = 0.02  # nats between the last two quarters of training: below it a loss no longer falls


def origin(results: Results) -> str:
  """'begun from the weights of `runs/x` (finetune)', '' where models begin at random."""
  found = results.settings('train.init_from')
  names = [f'`{path}`' for path in found if path]
  if not names:
    return ''
  kind = '/'.join(results.settings('train.init')) or 'finetune'
  return f'begun from the weights of {formats.listing(names, most=4)} ({kind})'


def risen(results: Results) -> list[Variant]:
  """Variants that end above a unigram count, or chance, without being on their way down."""
  floor, _ = _floor(results)
  chance = _chance(results)
  return [
    v
    for v in results.ranked
    if v.loss.n and v.loss.mean > floor and (v.loss.mean >= chance or not _falls(v))
  ]


def _floor(results: Results) -> tuple[float, str]:
  """The loss that counting single tokens gives, else that of chance; inf where neither is known."""
  if results.measure is BITS:
    return math.inf, ''
  if (unigram := results.references.get('unigram')) is not None:
    return unigram, f'a unigram count ({formats.loss(unigram)} {results.measure.unit})'
  return _chance(results), f'chance ({formats.loss(_chance(results))} {results.measure.unit})'


def _chance(results: Results) -> float:
  sizes = results.settings('model.vocab_size')
  return math.log(max(sizes)) if sizes and max(sizes) > 1 else math.inf


def _falls(variant: Variant) -> bool:
  return any(map(_cell_falls, variant.done))


def _cell_falls(cell: Cell) -> bool:
  """Whether the training loss of the last quarter is below that of the one before."""
  _, losses = cell.series(NATS.line)
  quarter = len(losses) // 4
  if not quarter:
    return len(losses) < 2 or losses[-1] < losses[0]
  before, last = losses[-2 * quarter : -quarter], losses[-quarter:]
  return statistics.fmean(last) < statistics.fmean(before) - _FALL


def sentences(results: Results) -> list[str]:
  """Whether the models learned more than single tokens and pairs of them tell."""
  lost = risen(results)
  bigram = results.references.get('bigram')
  above = [v for v in results.ranked if v.loss.n and bigram is not None and v.loss.mean >= bigram]
  return [*_lost(results, lost), *_above(results, [v for v in above if v not in lost], bool(lost))]


def _lost(results: Results, lost: list[Variant]) -> list[str]:
  if not lost:
    return []
  who = 'That' if len(results.variants) == 1 else _names(results, lost)
  verb = 'is' if len(lost) == 1 else 'are'
  return [
    f'{who} {verb} worse than {_floor(results)[1]}: training diverged or the learning rate is too '
    'high; lower the rate.'
  ]


def _above(results: Results, above: list[Variant], lost: bool) -> list[str]:
  bigram = results.references.get('bigram')
  if bigram is None:
    return []
  shown = f'a bigram count ({formats.loss(bigram)} {results.measure.unit})'
  if not any(v.loss.n for v in results.variants):
    return []
  if not above:
    every = 'Every' if all(v.loss.n for v in results.variants) else 'Every finished'
    ahead = [v.looks_ahead for v in results.variants]
    fair = ' that does not look ahead' if any(ahead) else ''
    who = f'{every} variant{fair} is' if len(results.variants) > 1 else 'That is'
    return [] if lost or all(ahead) else [f'{who} better than {shown}.']
  if len(results.variants) == 1:
    more = '' if origin(results) else ': train longer before concluding anything'
    return [f'That is no better than {shown}{more}.']
  verb = 'is' if len(above) == 1 else 'are'
  return [f'{_names(results, above)} {verb} no better than {shown}: such a model shows little.']


def _names(results: Results, variants: list[Variant]) -> str:
  return formats.listing([f'`{results.label(v.name)}`' for v in variants], most=8)
