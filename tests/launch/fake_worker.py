"""The real worker around a runner that does what the cell's name says. No jax."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from launch import worker
from launch.control import Control
from transformer.config import Config


class Stopped(Exception):
  pass


class NonFinite(Exception):
  pass


def run(config: Config, folder: Path, control: Control) -> dict:
  """Notes that it ran; then dies, fails, waits to be stopped, or works for a moment."""
  kind = folder.name.partition('-')[0]
  with open(folder.parents[1] / 'executions.txt', 'a') as f:
    f.write(f'{folder.name.rpartition("-")[0]}\n')
  print(f'running {folder.name}')
  if kind == 'die':
    os.kill(os.getpid(), signal.SIGKILL)
  if kind == 'exit':
    os._exit(3)
  if kind == 'crash':
    os.abort()
  if kind == 'fail':
    raise ValueError('no luck\nat all')
  if kind == 'nan':
    raise NonFinite('loss is nan at step 7')
  if kind == 'oom':
    raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes')
  if kind == 'full':
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / 'checkpoints'))
  if kind == 'further':
    reached = len(list(folder.glob('checkpoints/*')))
    if reached < 3:
      (folder / 'checkpoints' / str(reached + 1)).mkdir(parents=True)
      os._exit(3)
  if kind == 'pause' and not (folder / 'paused').exists():
    (folder / 'paused').touch()
    os.kill(os.getpid(), signal.SIGSTOP)
  release = folder.parents[1] / 'go'  # cells called slow wait for this file
  steps = 20 if kind == 'some' else 4
  for step in range(steps):
    control.beat(
      step=step, steps=steps, loss=4.0 - step / steps, tokens_per_s=1e4, phase='training'
    )
    time.sleep(0.02)
    while kind == 'slow' and not release.exists() and not control.stop:
      time.sleep(0.01)
    if control.stop:
      control.check()
      (folder / 'checkpoint').write_text(str(step))
      raise Stopped
  done = {'step': steps, 'eval/loss': 3.5, 'tokens_per_s': 12345.0, 'seconds': 0.1, 'data': 'd'}
  return done | {'node': os.environ.get('SLURMD_NODENAME', '')}


def note_rank() -> None:
  """Of several processes that srun has started: says which this is, in the run's folder."""
  if 'SLURM_PROCID' in os.environ and int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    workdir = next(a for a in sys.argv if a.startswith('--workdir=')).partition('=')[2]
    Path(workdir, f'rank-{os.environ["SLURM_PROCID"]}').write_text(os.environ['SLURMD_NODENAME'])


if __name__ == '__main__':
  note_rank()
  sys.exit(worker.main(run=run))
