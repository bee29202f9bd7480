"""Under which conditions an answer was found: shape, budget, seeds and tuning, in words."""

from __future__ import annotations

from collections.abc import Iterable

from transformer.analysis import formats, learned
from transformer.analysis.measures import BUDGETS
from transformer.analysis.results import Results


def conditions(results: Results) -> str:
  """'d_model 96, 2 layers, … fixed learning rate 0.008': shape, budget, seeds and tuning."""
  parts = [_d_model(results)]
  wanted = (*_layers(results), *_OF_PAIRS) if results.pairs else _OF_TEXT
  parts += _settings(results, wanted)
  if max(results.settings('moe.experts') or (0,)):
    said = [(path, text) for path, text, no in _OF_EXPERTS if results.settings(path) != (no,)]
    parts += _settings(results, said)
  parts += [
    learned.origin(results),
    _tokens(results),
    _budget(results),
    _seeds(results),
    _rate(results),
  ]
  return ', '.join(p for p in parts if p)


_OF_TEXT = (('model.num_layers', '{} layers'), ('data.seq_len', 'context {}'))
_OF_EXPERTS = (  # and the value that goes unsaid
  ('moe.experts', '{} experts', 0),
  ('moe.granularity', 'each split in {}', 1),
  ('moe.shared_experts', '{} shared experts', 0),
)
_OF_PAIRS = (
  ('data.source_len', 'sources up to {}'),
  ('data.seq_len', 'targets up to {} tokens'),
)


def _layers(results: Results) -> tuple[tuple[str, str], ...]:
  """Settings and templates for the depth of both sides."""
  if not any(results.settings('model.num_encoder_layers')):  # as many as the decoder's
    return (('model.num_layers', '{0} encoder and {0} decoder layers'),)
  return (
    ('model.num_encoder_layers', '{} encoder layers'),
    ('model.num_layers', '{} decoder layers'),
  )


def _d_model(results: Results) -> str:
  values = {v.asked('d_model') or results.setting('model.d_model') for v in results.variants}
  values = sorted(values - {None})
  return f'd_model {span(values)}' if values else ''


def span(values: list) -> str:
  """'2' or '2 to 6' of sorted values."""
  return f'{values[0]}' if values[0] == values[-1] else f'{values[0]} to {values[-1]}'


def _settings(results: Results, wanted: Iterable[tuple[str, str]]) -> list[str]:
  found = []
  for path, template in wanted:
    values = results.settings(path)
    if values and path not in results.by:
      text = template.format(span(values))
      found.append(text.removesuffix('s') if values == (1,) else text)
  return found


def _tokens(results: Results) -> str:
  amounts = sorted({results.amount(c) for c in results.cells} - {None})
  if not amounts:
    return ''
  sources = [] if 'data.source' in results.by else results.settings('data.source')
  what = f' of {formats.listing(list(sources))}' if sources else ''
  what += ' text' if what == ' of stdlib' and not results.pairs else ''
  return f'{span([formats.short(n) for n in amounts])} {results.unit}{what}'


def _budget(results: Results) -> str:
  """'equal parameters (319,968)', or by how much the variants differ."""
  key, what = BUDGETS.get(results.match, BUDGETS['params'])
  values = [v.asked(key) for v in results.variants if v.asked(key)]
  if not values:
    return ''
  low, high = min(values), max(values)
  if len(results.variants) == 1:
    return f'{formats.count(low)} {what}'
  if low == high:
    return f'equal {what} ({formats.count(low)})'
  span = f'{formats.count(low)} to {formats.count(high)}'
  if results.match in BUDGETS:
    return f'{what} equal within {100 * (high - low) / low:.2g} % ({span})'
  return f'{what} not matched ({span})'


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


def _seeds(results: Results) -> str:
  """'4 paired seeds', '2 to 3 of 4 paired seeds', '1 seed'."""
  asked = max(len(v.seeds) for v in results.variants)
  done = sorted({len(v.losses) for v in results.variants})
  paired = 'paired ' if len(results.variants) > 1 else ''
  noun = f'{paired}seed{"s" if asked != 1 else ""}'
  if done == [asked]:
    return f'{asked} {noun}'
  span = f'{done[0]}' if len(done) == 1 else f'{done[0]} to {done[-1]}'
  return f'{span} of {asked} {noun}'


def _rate(results: Results) -> str:
  rates = results.settings('optim.learning_rate')
  if not rates or 'optim.learning_rate' in results.by:
    return ''
  if len(rates) == 1:
    return f'{"fixed " if len(results.variants) > 1 else ""}learning rate {rates[0]:g}'
  return f'learning rates {rates[0]:g} to {rates[-1]:g}'
