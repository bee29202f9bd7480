"""Where cells run: the name that --on takes -> the module that knows how.

An engine of a cluster has these functions (launch/slurm.py, launch/kubernetes.py), and READ, the
settings of --launch.… that it reads beside those of workers:
  plan(job) -> str             the exact scripts or manifests, for --dry_run
  submit(job) -> dict          what was submitted, as plain JSON values
  states(record) -> dict       folder name of a cell -> 'waiting', 'running' or 'gone'
  cancel(record) -> None       what was submitted is to stop; it saves itself first
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from launch import records
from launch.cells import Cell, by_program, state, write_config
from launch.files import locked
from launch.job import Job
from transformer.config import LaunchConfig
from transformer.errors import UserError, nearest

LOCAL = 'local'
_MODULES = {'slurm': 'launch.slurm', 'kubernetes': 'launch.kubernetes'}
_READ_HERE = ('workers', 'retries', 'together')  # of --launch.…, on this machine


def engine(name: str) -> ModuleType:
  """The module of a cluster's engine. Raises UserError for a name that is none."""
  if name not in _MODULES:
    raise UserError(f'--on={name}: no such engine{nearest(name, [LOCAL, *_MODULES])}')
  return importlib.import_module(_MODULES[name])


def unread(name: str) -> list[str]:
  """The flags --launch.… that change nothing on this engine."""
  read = _READ_HERE if name == LOCAL else (*_READ_HERE, *engine(name).READ)
  return [f'launch.{f.name}' for f in dataclasses.fields(LaunchConfig) if f.name not in read]


def job(workdir: Path, cells: Sequence[Cell]) -> Job:
  """What is left of these cells, for a cluster. Their launch settings are those of the first."""
  left = [c for c in by_program(cells) if state(c.folder(workdir)) != 'done']
  return Job(workdir, tuple(c.folder_name for c in left), cells[0].config.launch, report=True)


def submit(name: str, cells: Sequence[Cell], workdir: Path) -> int:
  """Submits what is neither done nor on its way by an earlier submission; returns how many cells.

  Two who submit at once do so one after the other; what each has submitted is in launch.json.
  """
  for cell in cells:
    write_config(cell, workdir)
  return resubmit(name, job(workdir, cells))


def resubmit(name: str, wanted: Job) -> int:
  """The same for cells whose configs are written."""
  with locked(wanted.workdir):
    launches, known = _asked(records.read(wanted.workdir))
    left = tuple(cell for cell in wanted.cells if known.get(cell, 'gone') == 'gone')
    if left:
      record = engine(name).submit(dataclasses.replace(wanted, cells=left))
      submitted = {'engine': name, 'cells': left, 'record': record}
      records.write(wanted.workdir, [*launches, {**submitted, 'time': time.time()}])
  return len(left)


def states(workdir: Path) -> dict[str, str]:
  """Folder name -> what the clusters say of it by all submissions: waiting, running or gone."""
  return _asked(records.read(workdir))[1]


def _asked(launches: list[dict]) -> tuple[list[dict], dict[str, str]]:
  """Launches and what the clusters say of their cells. One that is over is not asked again."""
  entries, found = [], {}
  for entry in launches:
    if entry['engine'] != LOCAL:
      gone = dict.fromkeys(entry['cells'], 'gone')
      over = entry.get('over') or 'cancelled' in entry  # what still saves itself has its claims
      now = gone if over else gone | engine(entry['engine']).states(entry['record'])
      entry = {**entry, 'over': set(now.values()) <= {'gone'}}
      found |= {cell: told for cell, told in now.items() if found.get(cell, 'gone') == 'gone'}
    entries.append(entry)
  return entries, found


def cancel(workdir: Path) -> list[str]:
  """Asks all that has been started for a folder to save itself and stop; a line for each.

  Raises UserError where a cluster cannot be asked; the others are by then.
  """
  told, refused = [], None
  for entry in records.read(workdir):
    if 'cancelled' in entry or entry.get('over'):
      continue
    if entry['engine'] == LOCAL:
      told.append(f'process {entry["pid"]} on {entry["host"]} is asked to stop')
    else:
      try:
        engine(entry['engine']).cancel(entry['record'])
      except UserError as e:
        refused = e
        continue
      told.append(f'{len(entry["cells"])} cells submitted to {entry["engine"]} are cancelled')
    records.mark_cancelled(workdir, entry)
  if refused:
    print(''.join(f'{line}\n' for line in told), end='')
    raise refused
  return told
