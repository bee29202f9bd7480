"""A cell: one resolved config in one folder, and what has become of it.

    <workdir>/cells/<name>-<hash>/   config.json claim.json done.json | failed.json | pruned.json …

Launchers, workers and reports meet only in these folders. Every launcher builds on this page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.claims import DONE, FAILED, PRUNED, Claim, ClaimLost, holder
from launch.files import read_json, write_json
from transformer.config import Config, config_hash, static_key
from transformer.provenance import code_digest
from transformer.runs import provenance, retrained

__all__ = [
  'Cell',
  'Claim',
  'ClaimLost',
  'by_program',
  'code_digest',
  'read_json',
  'stale',
  'state',
  'write_config',
  'write_json',
]

_LONGEST = 80  # of a name in a folder's name; the hash behind it keeps longer ones apart


@dataclass(frozen=True)
class Cell:
  """One run of an experiment. config: resolved; its seed is the cell's."""

  name: str
  variant: str
  config: Config

  @property
  def seed(self) -> int:
    return self.config.seed

  @property
  def folder_name(self) -> str:
    """'<name>-<hash>': readable, safe in a path and on a command line."""
    readable = re.sub(r'[^A-Za-z0-9._=-]+', '_', self.name).lstrip('-.')[:_LONGEST]
    return f'{readable or "cell"}-{config_hash(self.config)}'

  def folder(self, workdir: str | Path) -> Path:
    return Path(workdir) / 'cells' / self.folder_name


def state(folder: str | Path) -> str:
  """'done', 'running' (a live process holds it), 'pruned', 'failed' or 'todo'."""
  folder = Path(folder)
  if (folder / DONE).exists():
    return 'done'
  if holder(folder):
    return 'running'
  if (folder / PRUNED).exists():
    return 'pruned'
  return 'failed' if (folder / FAILED).exists() else 'todo'


def write_config(cell: Cell, workdir: str | Path) -> None:
  """Makes the cell's folder and writes what is to run there, unless it says so already."""
  folder, config = cell.folder(workdir), cell.config.to_json()
  folder.mkdir(parents=True, exist_ok=True)
  if read_json(folder / 'config.json', strict=False) != config:
    write_json(folder / 'config.json', config)


def by_program(cells: Iterable[Cell]) -> list[Cell]:
  """Each cell once, those that share a compiled program side by side, else in the order given."""
  groups: dict[str, dict[str, Cell]] = {}
  for cell in cells:
    groups.setdefault(static_key(cell.config), {}).setdefault(cell.folder_name, cell)
  return [cell for group in groups.values() for cell in group.values()]


def stale(
  cells: Sequence[Cell],
  workdir: str | Path,
  data_fingerprint: str | Callable[[Config], str] | None = None,
) -> list[Cell]:
  """Cells done, or begun and left, by other code or from other data than a run would use now.

  So are cells that began from another run (--train.init_from) which has been trained anew since.

  data_fingerprint: of the data of all cells, or a function of a cell's config; None: what data
  made a cell is not asked.
  Raises UserError naming a done.json that cannot be read.
  """
  found = []
  for cell in cells:
    folder = cell.folder(workdir)
    made = read_json(folder / DONE) or _begun(folder)
    if made is None:
      continue
    data = made.get('data') if data_fingerprint is None else data_fingerprint
    data = data(cell.config) if callable(data) else data
    now = (code_digest(cell.config), data)
    if (made.get('code'), made.get('data')) != now or retrained(cell.config, made.get('origin')):
      found.append(cell)
  return found


def _begun(folder: Path) -> dict | None:
  """Code and data of what a cell that nobody runs has saved so far; None if there is nothing."""
  record = provenance(folder)
  if not record or not any(folder.glob('checkpoints/[0-9]*')) or holder(folder):
    return None
  data, origin = record.get('data') or {}, record.get('origin') or {}
  return {
    'code': record.get('code'),
    'data': data.get('fingerprint'),
    'origin': origin.get('identity'),
  }
