"""Which tensor was it? Repeats one step of a run and names the first that is not finite.

  python -m experiments.replay --cell=runs/train
  python -m experiments.replay --cell=runs/x/cells/relu-seed0-1a2b3c4d --step=57

It starts from what a run keeps of its bad steps, or else from the last checkpoint before the step,
and trains up to it: training is repeatable to the bit. A step that went well shows its sizes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import lab
from launch.files import read_json
from transformer import flags, runs
from transformer.config import resolve
from transformer.errors import UserError
from transformer.provenance import code_digest

if TYPE_CHECKING:
  from transformer.replay import Tensor

CELL = flags.script_flag('str', 'cell', 'runs/train', 'folder of a run')
STEP = flags.script_flag('int', 'step', 0, 'which step, from 1 on; 0: the first bad one')
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object with all tensors')

_BEFORE, _AFTER, _LARGEST = 8, 3, 5  # rows shown around the first bad one; of a stage that is fine


def main() -> int:
  folder = runs.cell_folder(Path(CELL.value), 'cell')
  config = resolve(runs.read_config(folder))
  step = STEP.value or _first_bad(folder)
  if not 1 <= step <= (reached := _reached(folder)):
    raise UserError(f'--step={step}: the run has steps 1 to {reached}')
  if runs.provenance(folder).get('code') != code_digest(config):
    print(f'{folder}: was trained by other code; what is repeated may differ', file=sys.stderr)
  tensors = _replay(folder, config, step)
  first = next((i for i, t in enumerate(tensors) if not t.finite), None)
  if JSON.value:
    told = [_plain(t) for t in tensors]
    where = None if first is None else told[first]
    print(json.dumps({'cell': str(folder), 'step': step, 'first': where, 'tensors': told}))
  else:
    _print(step, tensors, first)
  return 0


def _bad_steps(folder: Path) -> list[int]:
  return sorted(int(p.stem.removeprefix('step-')) for p in (folder / 'bad').glob('step-*.npz'))


def _reached(folder: Path) -> int:
  """The last step that the run has taken, as far as its files tell."""
  told = (read_json(folder / f'{name}.json', strict=False) or {} for name in ('heartbeat', 'done'))
  saved = runs.saved_steps(folder / 'checkpoints')
  return max([*(record.get('step') or 0 for record in told), *saved, *_bad_steps(folder)])


def _first_bad(folder: Path) -> int:
  kept = _bad_steps(folder)
  if not kept:
    raise UserError(f'--step=0: {folder} has no bad step; name a step, as in --step=100')
  return kept[0]


def _replay(folder: Path, config, step: int) -> list[Tensor]:
  from rich.progress import Progress

  from transformer.replay import replay

  with Progress(transient=True, console=_stderr()) as progress:
    task = progress.add_task(f'going through the steps before step {step}', total=None)

    def walked(done: int, total: int) -> None:
      progress.update(task, completed=done, total=total)

    return replay(folder, config, step, walked)


def _stderr():
  from rich.console import Console

  return Console(stderr=True)


def _plain(t: Tensor) -> dict:
  """JSON has no word for what is not finite: null."""
  told = dataclasses.asdict(t)
  return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in told.items()}


def _label(t: Tensor) -> str:
  return t.name if t.layer is None else f'{t.name}, layer {t.layer}'


def _print(step: int, tensors: list[Tensor], first: int | None) -> None:
  from rich import box
  from rich.table import Table

  if first is None:
    title = f'Step {step}: every tensor is finite. The largest of each stage:'
    shown = _largest(tensors)
  else:
    bad = tensors[first]
    title = f'Step {step}: the first tensor that is not finite: {bad.stage}: {_label(bad)}'
    shown = tensors[max(0, first - _BEFORE) : first + _AFTER + 1]
  table = Table(box=box.SIMPLE_HEAD)
  table.add_column('stage')
  table.add_column('tensor')
  for heading in ('largest |x|', 'rms', 'finite'):
    table.add_column(heading, justify='right')
  for t in shown:
    style = '' if t.finite else 'bold red'
    rms = 'over 1e+19' if t.finite and not math.isfinite(t.rms) else f'{t.rms:.4g}'
    numbers = (f'{t.largest:.4g}', rms, 'yes' if t.finite else 'NO')
    table.add_row(t.stage, _label(t), *numbers, style=style)
  out = lab.console()
  out.print(title, highlight=False)
  out.print(table)
  if first is not None:
    count = sum(not t.finite for t in tensors)
    out.print(f'{count} of {len(tensors)} tensors are not finite; --json lists them all')


def _largest(tensors: list[Tensor]) -> list[Tensor]:
  shown: list[Tensor] = []
  for stage in dict.fromkeys(t.stage for t in tensors):
    members = [t for t in tensors if t.stage == stage]
    shown += sorted(members, key=lambda t: -t.largest)[:_LARGEST]
  return shown


if __name__ == '__main__':
  flags.run(main)
