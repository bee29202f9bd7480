"""What a report says of the data, the machine and the cells that gave no result."""

from __future__ import annotations

from transformer.analysis import formats
from transformer.analysis.results import Cell, Results

_NAMES = {  # keys of provenance that read badly as they are
  'git_commit': 'commit',
  'code': 'digest of the code',
  'python': 'Python',
}
_KEYS = ('git_commit', 'code', 'versions', 'python', 'device', 'machine', 'cpu', 'cores')


def failure(cell: Cell) -> tuple[str, str]:
  """(cause and message in one line, tail of the log) of a failed cell."""
  f = cell.failure
  tries = f.get('attempts')
  again = f' (after {tries} attempts)' if isinstance(tries, int) and tries > 1 else ''
  tail = f.get('log_tail') or ''
  tail = '\n'.join(tail) if isinstance(tail, list) else str(tail)
  cause, message = f.get('cause', 'unknown'), f.get('message', '')
  return f'{cause}{again}' + (f': {message}' if message else ''), tail.strip()


def unfinished(results: Results) -> list[str]:
  """One line a cell that was started, and one for all that were not."""
  found = []
  for cell in results.by_state('unfinished'):
    p = cell.progress
    at = f'step {p["step"]} of {p.get("steps", "?")}' if 'step' in p else 'started'
    phase = f', {p["phase"]}' if p.get('phase') else ''
    found.append(f'`{cell.name}`: {at}{phase}')
  waiting = [f'`{c.name}`' for c in results.by_state('waiting')]
  if waiting:
    found.append(f'Not started: {formats.listing(waiting)}')
  return found


def data(results: Results) -> list[tuple[str, str]]:
  """Name and value of what the cells say of their data; several values are shown as several."""
  found: dict[str, set[str]] = {}
  for cell in results.cells:
    for key, value in (cell.provenance.get('data') or {}).items():
      if not isinstance(value, (dict, list)):
        found.setdefault(key, set()).add(_plain(value))
  names = {'python': 'Python whose library the text is'}
  shown = [
    (names.get(key, key.replace('_', ' ')), ' / '.join(sorted(values)))
    for key, values in found.items()
  ]
  references = results.references
  for name in ('unigram', 'bigram'):
    if name in references:
      bits = references.get(f'{name}_bits_per_byte')
      also = f' ({formats.loss(bits)} bits per byte)' if bits is not None else ''
      shown.append(
        (f'{name} count', f'{formats.loss(references[name])} {results.measure.unit}{also}')
      )
  return shown


def _plain(value) -> str:
  return formats.count(value) if isinstance(value, int) and value >= 10_000 else str(value)


def provenance(results: Results) -> list[tuple[str, str]]:
  """Name and value of what made the cells."""
  found = [(_NAMES.get(key, key), ' / '.join(results.provenance(key))) for key in _KEYS]
  found = [(key, value) for key, value in found if value]
  if results.command:
    found.append(('command', results.command))
  many = len(results.workdirs) > 1
  return [
    *found,
    ('folders' if many else 'folder', formats.listing(list(map(str, results.workdirs)))),
  ]
