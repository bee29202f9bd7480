"""Runs a script for many settings: every point of a grid, and a report of what differs.

  python -m launch.sweep --grid='ffn.activation=relu,gelu,swiglu; ffn.ratio=2,4,8; seed=0..4'
  python -m launch.sweep --grid='seed=0..2' --zip='ffn.ratio=2,4; optim.learning_rate=4e-3,3e-3'
  python -m launch.sweep --grid='ffn.activation=relu,gelu; ffn.ratio=1..8' --where='ffn.ratio<4 or
      ffn.activation=="gelu"' --train.steps=400 --workdir=runs/ratios --on=slurm --dry_run

All else is passed on to the script, as the settings that all cells share. Each cell is checked
before anything is run. The same command again goes on with what is not done. Then: launch.status,
launch.cancel, launch.retry, experiments.report.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from launch import space
from launch.cells import Cell
from launch.space import Point
from transformer import flags
from transformer.config import Config, config_hash, resolve
from transformer.errors import UserError

FLAGS = flags.FLAGS
_SCRIPT = 'experiments.train'


def define_flags(argv: Sequence[str]) -> None:
  """The flags of the script that --script names, and those of a sweep."""
  flags.script_flag('str', 'script', _SCRIPT, 'module of the script whose run is swept')
  flags.script_flag('str', 'grid', '', "settings and values, as in 'ffn.ratio=2,4; seed=0..4'")
  flags.script_flag('str', 'zip', '', 'the same, of values that go side by side')
  flags.script_flag('str', 'where', '', "which points to keep, as in 'ffn.ratio<8 or seed==0'")
  given = [word.partition('=')[2] for word in argv if word.lstrip('-').startswith('script=')]
  script(given[-1] if given else _SCRIPT)
  FLAGS.set_default('workdir', 'runs/sweep')


def script(name: str) -> ModuleType:
  """The script's module, whose function `run` takes the cells of a sweep.

  Raises UserError for what is no module, or has none.
  """
  try:
    found = importlib.import_module(name)
  except ModuleNotFoundError as e:
    if e.name is None or not f'{name}.'.startswith(f'{e.name}.'):
      raise  # of the script's own
    raise UserError(
      f'--script={name}: no such module; try --script={_SCRIPT}, or a module of yours like it'
    ) from None
  if not callable(getattr(found, 'run', None)):
    raise UserError(f'--script={name}: has no run(cells, by) to sweep; try --script={_SCRIPT}')
  return found


def main() -> int:
  asked = flags.config()
  points = space.points(FLAGS.grid, FLAGS.zip, FLAGS.where, asked)
  for name in points[0]:
    if FLAGS[name].present:
      raise UserError(f'--{name}: is swept; leave it out, or out of the sweep')
  cells = cells_of(asked, points)
  if twins := len(points) - len(cells):
    print(f'{twins} of {len(points)} points are the same run as another; run once', file=sys.stderr)
  return script(FLAGS.script).run(cells, by=','.join(name for name in points[0] if name != 'seed'))


def cells_of(asked: Config, points: Sequence[Point]) -> list[Cell]:
  """A resolved cell for each point; points that come to the same run are one.

  Raises UserError naming the point at which a combination of settings cannot run.
  """
  found: dict[str, Cell] = {}
  for point in points:
    try:
      cell = cell_of(asked, point)
    except UserError as e:
      told = '; '.join(f'{name}={space.text(value)}' for name, value in point.items())
      raise UserError(f'{e} (at {told}; --where leaves points out)') from None
    found.setdefault(config_hash(cell.config), cell)
  return list(found.values())


def cell_of(asked: Config, point: Point) -> Cell:
  """The cell of one point, named by its values: 'relu-ratio=2-seed=0', of variant 'relu, 2'."""
  config = resolve(asked.replace(**point))
  varied = {name: space.text(value) for name, value in point.items() if name != 'seed'}
  name = '-'.join(
    text if isinstance(point[path], str) else f'{path.rpartition(".")[2]}={text}'
    for path, text in varied.items()
  )
  seed = f'seed{config.seed}'
  return Cell(
    f'{name}-{seed}' if name else seed, ', '.join(varied.values()) or config.ffn.activation, config
  )


if __name__ == '__main__':
  flags.run(main, define_flags)
