"""How a sweep or an experiment stands: its cells, what runs, how long it takes, what has failed.

  python -m launch.status --workdir=runs/sweep             a table
  python -m launch.status --workdir=runs/sweep --watch     the same, kept up to date
  python -m launch.status --workdir=runs/sweep --json      one object, for scripts

A cell is lost if the process that claims it is gone: on this machine that is seen at once, on
others by a heartbeat that stands still for a minute, which --watch sees. launch.retry, or the same
command again, goes on with it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch import engines, folder, records
from launch.claims import is_live
from launch.folder import CellState
from launch.lease import Leases
from launch.progress import duration, number, rate
from transformer import flags
from transformer.errors import UserError

if TYPE_CHECKING:
  from rich.console import RenderableType

FLAGS = flags.FLAGS
_EVERY = 2.0  # seconds between looks
_ENGINE_EVERY = 15.0  # seconds between questions to a cluster
_ROWS = 12  # of running, lost or failed cells


def define_flags() -> None:
  flags.script_flag('str', 'workdir', 'runs/sweep', 'folder of a sweep or an experiment')
  flags.script_flag('bool', 'json', False, 'print one JSON object')
  flags.script_flag('bool', 'watch', False, 'stay and keep the table up to date')


def main() -> int:
  workdir, leases = Path(FLAGS.workdir), Leases()
  engine = _of_engines(workdir)
  cells = folder.read(workdir, leases, engine)
  if FLAGS.json:
    told = {'workdir': str(workdir), 'counts': folder.counts(cells), 'left_s': left(cells)}
    told['launches'] = [_launch(record) for record in records.read(workdir)]
    print(json.dumps({**told, 'cells': [cell.to_json() for cell in cells]}))
    return 0
  from rich.console import Console

  if not FLAGS.watch:
    Console().print(table(workdir, cells))
    return 0
  from rich.live import Live

  asked_at = time.monotonic()
  with Live(table(workdir, cells), auto_refresh=False) as live:
    while any(cell.state in ('running', 'waiting', 'lost') for cell in cells):
      time.sleep(_EVERY)
      if time.monotonic() - asked_at > _ENGINE_EVERY:
        engine, asked_at = _of_engines(workdir), time.monotonic()
      cells = folder.read(workdir, leases, engine)
      live.update(table(workdir, cells), refresh=True)
  return 0


def _of_engines(workdir: Path) -> dict[str, str]:
  """What clusters say of the cells; nothing, and a line why, where they cannot be asked."""
  try:
    return engines.states(workdir)
  except UserError as e:
    print(e, file=sys.stderr)
    return {}


def left(cells: Sequence[CellState]) -> float | None:
  """Seconds until all is done, if those who run now go on so; None where that cannot be told."""
  running = [cell for cell in cells if cell.state == 'running']
  seconds = [cell.seconds for cell in cells if cell.state == 'done' and cell.seconds]
  shares = [1 - cell.step / cell.steps if cell.steps else 1.0 for cell in running]
  shares += [1.0 for cell in cells if cell.state in ('waiting', 'lost')]
  if not shares:
    return 0.0
  if not seconds or not running:
    return None
  return statistics.median(seconds) * max(sum(shares) / len(running), *shares)


def table(workdir: Path, cells: Sequence[CellState]) -> RenderableType:
  """What a person wants to know at a glance: counts, what runs, what is wrong."""
  from rich.console import Group
  from rich.text import Text

  found = folder.counts(cells)
  told = ', '.join(f'{n} {state}' for state, n in found.items() if n)
  queued = sum(cell.queued for cell in cells)
  told += f' ({queued} in a queue)' if queued else ''
  time_left = left(cells)
  told += f'; about {duration(time_left)} left' if time_left else ''
  lines: list[RenderableType] = [Text(f'{workdir}: {len(cells)} cells: {told}')]
  for record in records.read(workdir):
    lines.append(Text(f'  {_launch(record)}', style='dim'))
  lines += _progress(cells)
  lines += _failures([cell for cell in cells if cell.state == 'failed'])
  return Group(*lines)


def _launch(record: dict) -> str:
  cancelled = ', cancelled' if 'cancelled' in record else ''
  if record['engine'] == engines.LOCAL:
    gone = '' if is_live(record) else ', which is gone'
    return f'launched by process {record.get("pid")} on {record.get("host")}{gone}{cancelled}'
  at = time.strftime('%Y-%m-%d %H:%M', time.localtime(record.get('time', 0)))
  return f'{len(record["cells"])} cells submitted to {record["engine"]} at {at}{cancelled}'


def _progress(cells: Sequence[CellState]) -> list[RenderableType]:
  """The running cells, and the lost ones."""
  from rich.table import Table
  from rich.text import Text

  shown = [cell for cell in cells if cell.state in ('running', 'lost')]
  if not shown:
    return []
  drawn = Table.grid(padding=(0, 2))
  for cell in shown[:_ROWS]:
    step = f'{cell.step}/{cell.steps}' if cell.steps else ''
    phase = Text('lost', style='red') if cell.state == 'lost' else Text(cell.phase)
    speed = rate(cell.tokens_per_s, ' tokens/s')
    drawn.add_row(Text(cell.name), step, number('loss ', cell.loss), speed, phase, Text(cell.where))
  return [drawn, *_more(shown)]


def _failures(cells: Sequence[CellState]) -> list[RenderableType]:
  from rich.text import Text

  return [
    Text(f'{cell.name}: {cell.cause} ({cell.attempts}×): {cell.message}', style='red')
    for cell in cells[:_ROWS]
  ] + _more(cells)


def _more(cells: Sequence[CellState]) -> list[RenderableType]:
  return [f'… and {len(cells) - _ROWS} more'] if len(cells) > _ROWS else []


if __name__ == '__main__':
  define_flags()
  flags.run(main)
