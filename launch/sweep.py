"""Runs a script for many settings: every point of a grid, and a report of what differs.

  python -m launch.sweep --grid='ffn.activation=relu,gelu,swiglu; ffn.ratio=2,4,8; seed=0..4'
  python -m launch.sweep --grid='seed=0..2' --zip='ffn.ratio=2,4; optim.learning_rate=4e-3,3e-3'
  python -m launch.sweep --grid='ffn.activation=relu,gelu; ffn.ratio=1..8' --where='ffn.ratio<4 or
      ffn.activation=="gelu"' --train.steps=400 --workdir=runs/ratios --on=slurm --dry_run

Instead of a grid, a search by Optuna (pip install 'isoffn[search]'), each trial a cell:

  python -m launch.sweep --search='optim.learning_rate=log(1e-4,1e-2); ffn.ratio=int(1,16)'
      --trials=64 --sampler=tpe --prune=asha --train.eval_every=100

All else is passed on to the script, as the settings that all cells share. Each cell is checked
before anything is run. The same command again goes on with what is not done. Then: launch.status,
launch.cancel, launch.retry, experiments.report.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

from launch import ranges, search, space
from launch.cells import Cell
from launch.search import Search
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
  flags.script_flag('str', 'search', '', "instead: ranges, as in 'ffn.ratio=int(1,16)'")
  flags.script_flag('int', 'trials', 32, 'of --search: cells in all')
  flags.script_flag('str', 'sampler', 'tpe', f'of --search: {" | ".join(search.SAMPLERS)}')
  told = f'of --search: what stops a poor cell at an evaluation: {" | ".join(search.PRUNERS)}'
  flags.script_flag('str', 'prune', 'none', told)
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
    raise UserError(
      f'--script={name}: has no run(cells, by, search) to sweep; try --script={_SCRIPT}'
    )
  return found


def main() -> int:
  asked, found = flags.asked(), script(FLAGS.script)
  if FLAGS.search:
    wanted = _search(asked)
    return found.run(wanted.corners(), ','.join(wanted.axes), wanted)
  for name in ('trials', 'sampler', 'prune'):
    if FLAGS[name].present:
      raise UserError(f'--{name}: is of --search; leave it out of a grid')
  points = space.points(FLAGS.grid, FLAGS.zip, FLAGS.where, asked)
  _refuse_fixed(points[0])
  cells = cells_of(asked, points)
  if twins := len(points) - len(cells):
    print(f'{twins} of {len(points)} points are the same run as another; run once', file=sys.stderr)
  return found.run(cells, ','.join(name for name in points[0] if name != 'seed'))


def _search(asked: Config) -> Search:
  """What --search and its fellows ask for."""
  for name in ('grid', 'zip', 'where'):
    if FLAGS[name].value:
      raise UserError(f'--{name}: is not for --search; leave one of them out')
  for name, options in (('sampler', search.SAMPLERS), ('prune', search.PRUNERS)):
    if FLAGS[name].value not in options:
      raise UserError(f'--{name}={FLAGS[name].value}: choose from {", ".join(options)}')
  if FLAGS.trials < 1:
    raise UserError(f'--trials={FLAGS.trials}: should be 1 or more')
  axes = ranges.parse(FLAGS.search)
  if 'seed' in axes:
    raise UserError(f'--search={FLAGS.search}: the best of many seeds is luck; leave seed out')
  _refuse_fixed(axes)
  cell = functools.partial(cell_of, asked)
  wanted = Search(axes, FLAGS.trials, FLAGS.sampler, FLAGS.prune, asked.seed, cell)
  search.needs_evaluations(wanted, wanted.corners()[0].config)
  return wanted


def _refuse_fixed(varied: Iterable[str]) -> None:
  """Raises UserError for a setting that varies and is given a value as well."""
  for name in varied:
    if FLAGS[name].present:
      raise UserError(f'--{name}: is swept; leave it out, or out of the sweep')


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
