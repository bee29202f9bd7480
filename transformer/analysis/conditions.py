"""Under which conditions an answer was found: shape, budget, seeds and tuning, in words."""

from __future__ import annotations

from collections.abc import Iterable

from transformer.analysis import budget, formats, learned
from transformer.analysis.results import Results


def conditions(results: Results) -> str:
  """'d_model 96, 2 layers, … fixed learning rate 0.008': shape, budget, seeds and tuning."""
  parts = [_d_model(results)]
  wanted = (*_layers(results), *_OF_PAIRS) if results.pairs else _OF_TEXT
  parts += _settings(results, wanted)
  parts += [
    budget.experts(results),
    learned.origin(results),
    _tokens(results),
    budget.sentence(results),
    _seeds(results),
    _rate(results),
  ]
  return ', '.join(p for p in parts if p)


_OF_TEXT = (('model.num_layers', '{} layers'), ('data.seq_len', 'context {}'))
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
