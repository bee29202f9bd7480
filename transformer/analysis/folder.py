"""Reads one experiment's folder, finished or not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

from transformer.analysis import formats
from transformer.analysis.measures import BITS, NATS, Measure
from transformer.analysis.results import Cell, is_number, plain_setting
from transformer.errors import UserError


@dataclass(frozen=True)
class Folder:
  """What an experiment was asked, and its cells as they are now."""

  path: Path
  asked: dict  # experiment.json
  base: dict  # resolved base config, nested
  cells: tuple[Cell, ...]
  references: dict  # unigram, bigram, …
  searched: dict  # search.json: the trials of a search

  def get(self, key: str) -> str:
    """A text of experiment.json, '' if absent."""
    return self.asked.get(key) or ''

  @property
  def name(self) -> str:
    return self.get('name') or self.path.name


def read(path: Path, notes: list[str]) -> Folder:
  """Reads runs/<experiment>/, also while it runs.

  Raises UserError naming the file where experiment.json is missing or not what it should be.
  A cell's file that cannot be read is left out and named in `notes`.
  """
  asked = _read_experiment(path / 'experiment.json')
  cells = tuple(_read_cell(path, entry, notes) for entry in asked['cells'])
  base = _read_json(path / 'resolved.json', notes) or asked.get('base') or {}
  also = (_read_json(path / f'{name}.json', notes) for name in ('references', 'search'))
  return Folder(path, asked, base, cells, *also)


def _read_experiment(path: Path) -> dict:
  wrong = f'{path}: {{}}; give the folder that an experiment wrote, runs/<experiment>'
  try:
    asked = json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(wrong.format('no such file')) from None
  except (OSError, ValueError) as error:
    raise UserError(wrong.format(f'cannot be read ({error})')) from None
  entries = asked.get('cells') if isinstance(asked, dict) else None
  if not isinstance(entries, list) or not entries:
    raise UserError(wrong.format('lists no cells'))
  for entry in entries:
    missing = {'name', 'variant', 'seed', 'folder'} - set(entry if isinstance(entry, dict) else ())
    if missing:
      raise UserError(wrong.format(f'a cell without {", ".join(sorted(missing))}'))
    if not isinstance(entry['seed'], int):
      raise UserError(wrong.format(f'a cell with seed {entry["seed"]!r}'))
  return asked


def _read_cell(workdir: Path, entry: dict, notes: list[str]) -> Cell:
  folder = workdir / 'cells' / str(entry['folder'])
  read = {
    name: _read_json(folder / f'{name}.json', notes)
    for name in ('config', 'provenance', 'done', 'failed', 'heartbeat', 'pruned')
  }
  rows = _read_rows(folder / 'metrics.jsonl', notes)
  done, failed = read['done'], read['failed']
  if done and not is_number(done.get(NATS.key)):
    failed = {'cause': 'non-finite', 'message': f'held-out loss is {done.get(NATS.key)}'}
    done = {}
  claimed = (folder / 'claim.json').exists()
  if done:
    state = 'done'
  elif read['pruned'] and not claimed:
    state = 'pruned'
  elif failed:
    state = 'failed'
  else:
    state = 'unfinished' if read['heartbeat'] or rows or claimed else 'waiting'
  return Cell(
    name=str(entry['name']),
    variant=str(entry['variant']),
    seed=entry['seed'],
    folder=folder,
    state=state,
    asked=entry,
    config=read['config'],
    provenance=read['provenance'],
    result=done,
    failure=failed if state == 'failed' else {},
    progress=read['heartbeat'],
    rows=rows,
    tokenizer=_digest(folder / 'tokenizer.json'),
  )


def _digest(path: Path) -> str:
  try:
    return hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError:
    return ''


def _read_json(path: Path, notes: list[str]) -> dict:
  """The object in a file; {} where it is absent, or unreadable, which is noted."""
  try:
    found = json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    notes.append(f'{path} left out: {error}')
    return {}
  return found if isinstance(found, dict) else {}


def _read_rows(path: Path, notes: list[str]) -> tuple[dict, ...]:
  """Rows of metrics.jsonl; the last line may be half written and is dropped silently then."""
  try:
    lines = path.read_text(errors='replace').splitlines()
  except OSError:
    return ()
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except ValueError:
      if number < len(lines):
        notes.append(f'{path} line {number} left out: not JSON')
      continue
    if isinstance(row, dict):
      rows.append(row)
  return tuple(rows)


def mixtures(cells: Iterable[Cell]) -> list[str]:
  """Finished cells that other code or other data made are compared only with a warning.

  The digest of the code covers the users' own files that a cell uses, so it may differ between
  cells that use different ones; that of the data covers rows of tokens, so it differs between
  tokenizers and lengths of context, where the text itself tells.
  """
  done = [c for c in cells if c.state == 'done']
  data = _versions(done, 'data', _cut)
  if not data and len({c.text for c in done} - {()}) > 1:
    data = ['the held-out text is not the same for all finished cells; compare with care']
  return [*_versions(done, 'code', _files), *data]


def _files(cell: Cell) -> Hashable:
  """The users' own files that a cell uses."""
  return tuple(sorted(cell.provenance.get('plugins') or ()))


def _cut(cell: Cell) -> Hashable:
  """How text becomes rows of tokens."""
  tokenizer = cell.tokenizer or plain_setting(cell.config, 'data.tokenizer')
  return tokenizer, plain_setting(cell.config, 'data.seq_len')


def _versions(cells: Iterable[Cell], key: str, like: Callable[[Cell], Hashable]) -> list[str]:
  """Notes that cells which are `like` each other have different digests of code or data."""
  found: dict[Hashable, Counter] = {}
  for c in cells:
    if c.result.get(key):
      found.setdefault(like(c), Counter())[str(c.result[key])] += 1
  notes = []
  for digests in found.values():
    if len(digests) > 1:
      parts = ', '.join(f'{n} by {digest[:8]}' for digest, n in sorted(digests.items()))
      what = f'{len(digests)} versions of the {key} ({parts})'
      notes.append(f'finished cells come from {what}; compare with care')
  return notes


def lossy(cells: Iterable[Cell], measure: Measure) -> list[str]:
  """Tokenizers that do not give the held-out text back whole have less to predict in a byte."""
  if measure is not BITS:
    return []
  found = {
    plain_setting(c.config, 'data.tokenizer'): n
    for c in cells
    if (n := (c.provenance.get('data') or {}).get('held_out_lossy_documents'))
  }
  if not found:
    return []
  told = formats.listing([f'{n:,} by `{name}`' for name, n in found.items()])
  return [f'held-out documents not told whole, which flatters bits per byte: {told}']
