"""Several worker processes that run cells together, on this machine and by gloo."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from launch.cells import Cell, write_config
from tests.processes import ROOT, WORKER, environment

# Notes which part of each batch was read by whom.
NOTES = """
from transformer.data import Data
whole = Data.train_batch

def noted(self, i, part=0, parts=1):
  with open(os.environ['READS'], 'a') as f:
    f.write(f'{i} {part} {parts}\\n')
  return whole(self, i, part, parts)

Data.train_batch = noted
"""
# As unoptimised as a test's own programs, so that sums are taken in one order.
FLAGS = '--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0'


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start_team(
  workdir: Path, processes: int, devices: int, *cells: Cell, pace: float = 0.0
) -> list[subprocess.Popen]:
  """Starts a team of workers on cells, with so many devices each."""
  env = environment(
    PACE=str(pace), XLA_FLAGS=FLAGS.format(devices), READS=str(workdir / 'reads.txt')
  )
  workdir.mkdir(exist_ok=True)
  for c in cells:
    write_config(c, workdir)
  port, team = free_port(), []
  for rank in range(processes):
    distributed = f'127.0.0.1:{port},{rank},{processes}' if processes > 1 else 'off'
    command = [sys.executable, '-c', 'import os\n' + NOTES + WORKER, f'--workdir={workdir}']
    command += [f'--distributed={distributed}', '--cells', *(c.folder_name for c in cells)]
    with open(workdir / f'worker-{rank}.log', 'ab') as log:
      team.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
  return team


def run_team(workdir: Path, processes: int, devices: int, *cells: Cell) -> list[int]:
  """Runs cells to their end; the exit statuses."""
  team = start_team(workdir, processes, devices, *cells)
  try:
    return [process.wait(timeout=900) for process in team]
  finally:
    for process in team:
      process.kill()
