"""Scripts and workers as processes of their own, in a clean environment and on one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from launch.cells import Cell, write_config
from transformer.checkpoint import load_params
from transformer.config import Config, resolve

ROOT = Path(__file__).parents[1]
TINY = {
  'model.d_model': 16,
  'model.num_layers': 1,
  'model.num_heads': 2,
  'model.vocab_size': 32,
  'data.source': 'synthetic(rows=64)',
  'data.seq_len': 16,
  'data.batch_size': 4,
}
# One step every `PACE` seconds, and evaluations that last; what is computed stays the same.
WORKER = """
import os, sys, time
from launch import worker
from transformer import train
from transformer.data import Data
batch, batches, result = Data.train_batch, Data.eval_batches, train._Run._result

def slow(of, seconds):
  def call(*args):
    time.sleep(seconds)
    return of(*args)
  return call

pace = float(os.environ.get('PACE', 0))
if pace:
  Data.train_batch = slow(batch, pace)
  Data.eval_batches = slow(batches, 40 * pace)
  train._Run._result = slow(result, 40 * pace)
sys.exit(worker.main(sys.argv[1:]))
"""


def environment(**more: str) -> dict[str, str]:
  """Ours, less what would force devices; prepared data and programs are those of all tests."""
  env = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'PACE', 'COLUMNS')}
  env |= {'JAX_PLATFORMS': 'cpu', 'COLUMNS': '300'}
  env['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'  # compiles in half the time, and so do
  env['XLA_FLAGS'] = '--xla_cpu_use_fusion_emitters=false'  # the older emitters
  return env | more


def flags(settings: dict) -> list[str]:
  """Settings as they are written on a command line."""
  return [f'--{name}={value}' for name, value in settings.items()]


def start(module: str, *args: str, **env: str) -> subprocess.Popen:
  """Starts a script."""
  return subprocess.Popen(
    [sys.executable, '-m', module, *args],
    cwd=ROOT,
    env=environment(**env),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(module: str, *args: str, **env: str) -> subprocess.CompletedProcess:
  """Runs a script to its end."""
  process = start(module, *args, **env)
  out, err = process.communicate(timeout=120)
  return subprocess.CompletedProcess(args, process.returncode, out, err)


def cell(name: str, **changes: object) -> Cell:
  """A tiny run."""
  config = resolve(Config().replace(**TINY | changes))
  return Cell(name, config.ffn.activation, config)


def start_worker(workdir: Path, *cells: Cell, pace: float = 0.0) -> subprocess.Popen:
  """Starts a worker on cells."""
  env = environment(PACE=str(pace))
  for c in cells:
    write_config(c, workdir)
  command = [sys.executable, '-c', WORKER, f'--workdir={workdir}', '--cells']
  command += [c.folder_name for c in cells]
  with open(workdir / 'worker.log', 'ab') as log:
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 60) -> None:
  """Waits while `process` lives, without a pause that would let the moment pass."""
  end = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, f'ended with {process.returncode} before the moment came'
    assert time.monotonic() < end
    time.sleep(0.0005)


def rows(folder: Path) -> list[dict]:
  """metrics.jsonl without what is measured by the clock; a half-written last line is left out."""
  path, found = folder / 'metrics.jsonl', []
  for line in path.read_text().split('\n') if path.exists() else ():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    found.append({k: v for k, v in row.items() if not k.startswith('perf/')})
  return found


def read(path: Path) -> dict:
  return json.loads(path.read_text())


def phase(folder: Path) -> str:
  """What a cell is at."""
  try:
    return read(folder / 'heartbeat.json')['phase']
  except (FileNotFoundError, ValueError):
    return ''


def saved_steps(folder: Path) -> set[int]:
  """Steps of the checkpoints that are complete."""
  return {int(p.name) for p in (folder / 'checkpoints').glob('*') if p.name.isdigit()}


def assert_same_params(a: Path, b: Path) -> None:
  """The newest checkpoints of two cells are of one step, and equal bit for bit."""
  (step_a, params_a), (step_b, params_b) = (load_params(f / 'checkpoints') for f in (a, b))
  leaves_a, leaves_b = (_leaves(p) for p in (params_a, params_b))
  assert step_a == step_b
  assert leaves_a.keys() == leaves_b.keys()
  for name, value in leaves_a.items():
    np.testing.assert_array_equal(value, leaves_b[name], err_msg=name)


def _leaves(tree: dict, prefix: str = '') -> dict[str, np.ndarray]:
  found = {}
  for name, value in tree.items():
    path = f'{prefix}/{name}'
    found |= _leaves(value, path) if isinstance(value, dict) else {path: np.asarray(value)}
  return found
