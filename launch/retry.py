"""Goes on with a sweep or an experiment: what waits or was lost, and on request what has failed.

  python -m launch.retry --workdir=runs/sweep                              what is open
  python -m launch.retry --workdir=runs/sweep --failed                     and all that has failed
  python -m launch.retry --workdir=runs/sweep --cause=oom,died             what is open, and these
  python -m launch.retry --workdir=runs/sweep --failed --on=slurm          on another engine

Cells go on from their last checkpoint. --launch.… settings may differ from those of before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launch import causes, engines, folder, records
from launch.cells import Cell, stale
from transformer import flags
from transformer.errors import UserError, nearest
from transformer.runs import read_config

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.script_flag('str', 'workdir', 'runs/sweep', 'folder of a sweep or an experiment')
  flags.script_flag('bool', 'failed', False, 'try again what has failed')
  told = ', '.join([*causes.CAUSES, *causes.SHORT])
  flags.script_flag('str', 'cause', '', f'try again what has failed of these: {told}')
  flags.script_flag('str', 'on', '', 'local | slurm | kubernetes; empty: where it was submitted to')
  flags.define_section('launch')


def main() -> int:
  workdir = Path(FLAGS.workdir)
  asked = folder.asked(workdir)
  if asked.get('search'):
    raise UserError(f'--workdir={workdir}: a search goes on by its command: {asked["command"]}')
  again = _causes(FLAGS.cause) if FLAGS.failed or FLAGS.cause else ()
  names = [
    cell.folder.name
    for cell in folder.read(workdir)
    if cell.state in ('waiting', 'lost') or (cell.state == 'failed' and cell.cause in again)
  ]
  if not names:
    print(f'{workdir}: nothing to go on with')
    return 0
  cells = _cells(workdir, asked, names)
  if old := stale(cells, workdir):
    raise UserError(
      f'{workdir}: {len(old)} of {len(cells)} cells were begun by other code than now; run its '
      f'command with --recompute or --accept_stale: {asked["command"]}'
    )
  on = FLAGS.on or _engine(workdir)
  if on == engines.LOCAL:
    return _run(workdir, cells, len(asked['cells']))
  count = engines.submit(on, cells, workdir)
  print(f'{count} cells submitted to {on}')
  return 0


def _causes(text: str) -> Sequence[str]:
  """The causes of --cause; all of them where it is empty."""
  found = [part.strip() for part in text.split(',') if part.strip()]
  found = [causes.SHORT.get(cause, cause) for cause in found]
  if wrong := [cause for cause in found if cause not in causes.CAUSES]:
    options = [*causes.CAUSES, *causes.SHORT]
    raise UserError(f'--cause={text}: no cause {wrong[0]!r}{nearest(wrong[0], options)}')
  return found or causes.CAUSES


def _engine(workdir: Path) -> str:
  """Where the cells were submitted to last; here, if nowhere."""
  found = [r['engine'] for r in records.read(workdir) if r['engine'] != engines.LOCAL]
  return found[-1] if found else engines.LOCAL


def _cells(workdir: Path, asked: dict, names: Sequence[str]) -> list[Cell]:
  """Cells by what their folders say, with the launch settings given now."""
  entries = {entry['folder']: entry for entry in asked['cells']}
  found = []
  for name in names:
    path, entry = workdir / 'cells' / name, entries[name]
    if not (path / 'config.json').exists():
      raise UserError(f'{path}: no config.json; run the command again: {asked["command"]}')
    config = read_config(path).replace(**flags.given())
    cell = Cell(entry['name'], entry['variant'], config)
    if cell.folder_name != name:
      raise UserError(f'{path}: its settings mean another run by now; run: {asked["command"]}')
    found.append(cell)
  return found


def _run(workdir: Path, cells: Sequence[Cell], of: int) -> int:
  """Runs some of a folder's `of` cells on this machine and writes the report."""
  from launch import local
  from transformer.analysis import report

  launch = cells[0].config.launch
  outcome = local.run(workdir, cells, launch.workers, retries=launch.retries, of=of)
  print(f'{len(outcome.done)} done, {len(outcome.failed)} failed')
  if outcome.interrupted:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130
  results = report.write(workdir)
  print(f'Report: {results.out / "report.html"}')
  return 1 if outcome.failed else 0


if __name__ == '__main__':
  define_flags()
  flags.run(main)
