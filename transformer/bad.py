"""What is kept of a step that was not finite, so that experiments.replay can go through it again.

  <cell>/bad/step-N.npz   the batch of step N
  <cell>/bad/S/state      a state at step S < N to start from: the one before the bad step where it
                          is still at hand, else (and of several processes) the last checkpoint
                          before it

Training is a function of state and batch to the bit, so what lies between S and N can be repeated.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np

from transformer.checkpoint import save_state
from transformer.errors import UserError
from transformer.files import replacing
from transformer.runs import saved_steps
from transformer.state import TrainState

_MOST = 3  # steps of a run; what follows is mostly more of the same


def batch_file(cell: Path, step: int) -> Path:
  """Where the batch of a bad step is, if it was kept."""
  return cell / 'bad' / f'step-{step}.npz'


def kept_batch(cell: Path, step: int) -> dict[str, np.ndarray] | None:
  """The batch of a bad step, if it was kept. Raises UserError naming a file that is none."""
  path = batch_file(cell, step)
  try:
    with np.load(path, allow_pickle=False) as arrays:  # nobody's code is run from a run's folder
      return dict(arrays)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
    raise UserError(f'{path}: is not a batch as it was kept; delete it') from None


def states_before(cell: Path, step: int) -> dict[int, Path]:
  """Step -> folder of every saved state that `step` can be reached from, the nearest first."""
  found = {s: f / str(s) for f in (cell / 'checkpoints', cell / 'bad') for s in saved_steps(f)}
  return {s: found[s] / 'state' for s in sorted(found, reverse=True) if s < step}


def is_wanted(cell: Path, step: int) -> bool:
  """Whether a bad step is among the first of its run, and not kept yet."""
  return not batch_file(cell, step).exists() and len(list(cell.glob('bad/step-*.npz'))) < _MOST


def keep(cell: Path, step: int, in_a_row: int, batch: dict, state: TrainState) -> None:
  """Keeps a bad step.

  in_a_row: bad steps up to this one without a good one between. batch: of the host. state: where
  the run stands now, some steps later, as it is saved.
  """
  path = batch_file(cell, step)
  path.parent.mkdir(exist_ok=True)
  with replacing(path, 'wb') as f:
    np.savez_compressed(f, **batch)
  last_good, alone = step - in_a_row, jax.process_count() == 1  # else all would have to save it
  before = next(iter(states_before(cell, last_good + 1)), 0)
  if before == last_good:
    if (cell / 'checkpoints' / str(before)).exists():
      _hold(cell, before)
  elif alone and int(state.bad_steps) == int(state.step) - last_good:  # it has not moved since
    then = {'step': np.int32(last_good), 'bad_steps': np.int32(0)}
    skipped = np.asarray(state.skipped) - np.asarray(state.bad_steps)
    save_state(path.parent / str(last_good) / 'state', state.replace(**then, skipped=skipped))
  elif before:
    _hold(cell, before)


def _hold(cell: Path, step: int) -> None:
  """Keeps a checkpoint beyond its time; it takes no room as long as the run keeps it as well."""
  target = cell / 'bad' / str(step)
  if not target.exists():
    temporary = target.with_suffix('.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(cell / 'checkpoints' / str(step), temporary, copy_function=_link)
    temporary.rename(target)


def _link(source: str, target: str) -> None:
  try:
    os.link(source, target)
  except OSError:  # a file system without links
    shutil.copy2(source, target)
