"""A task of a cluster, run without one: what it exits with, and when it gives up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launch_fakes import executions, make_cells, result, until
from slurm_cluster import free_ports

from launch import shares, task
from launch.cells import Cell, state, write_config
from launch.job import Job
from launch.worker import STOPPED
from transformer import plugin
from transformer.config import LaunchConfig

TASK = [sys.executable, str(Path(__file__).with_name('fake_task.py'))]


def _deal(workdir: Path, cells: list[Cell], **launch: object) -> Path:
  for cell in cells:
    write_config(cell, workdir)
  names = tuple(cell.folder_name for cell in cells)
  config = LaunchConfig(**{'workers': 1, 'per_task': len(cells)} | launch)
  dealt = shares.deal(Job(workdir, names, config, report=False))
  shares.write(dealt)
  return dealt.path


def _start(path: Path, index: int = 0, **env: str) -> subprocess.Popen:
  command = [*TASK, f'--shares={path}', f'--index={index}']
  return subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True)


def _run(path: Path, index: int = 0, **env: str) -> tuple[int, str]:
  process = _start(path, index, **env)
  said = process.communicate(timeout=120)[1]
  return process.returncode, said


def test_each_task_runs_its_share_and_says_if_a_cell_has_failed(workdir: Path) -> None:
  cells = make_cells('a', 'b', 'fail-c', 'd')
  path = _deal(workdir, cells, per_task=2)
  assert _run(path, 0)[0] == 0
  assert executions(workdir) == {'a': 1, 'b': 1}
  assert _run(path, 1)[0] == task.FAILED
  assert [state(c.folder(workdir)) for c in cells] == ['done', 'done', 'failed', 'done']
  assert _run(path, 1)[0] == task.FAILED  # no second try: it was a bug
  assert executions(workdir) == {'a': 1, 'b': 1, 'fail-c': 1, 'd': 1}
  again = _deal(workdir, cells, per_task=2)  # submitted anew: it gets one
  assert again != path
  assert _run(again, 1)[0] == task.FAILED
  assert executions(workdir)['fail-c'] == 2


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_however_often_it_saves_and_is_continued(
  workdir: Path, number: signal.Signals
) -> None:
  cells = make_cells('slow-a')
  path = _deal(workdir, cells)
  process = _start(path)
  until(lambda: executions(workdir), 120)
  for _ in range(3):
    process.send_signal(number)
  process.communicate(timeout=120)
  assert process.returncode == STOPPED
  assert (cells[0].folder(workdir) / 'checkpoint').exists()
  assert not (cells[0].folder(workdir) / 'claim.json').exists()
  (workdir / 'go').touch()
  assert _run(path)[0] == 0
  assert executions(workdir) == {'slow-a': 2}


def test_what_never_gets_further_is_given_up_but_saved_steps_count(workdir: Path) -> None:
  cells = make_cells('slow-a', 'b')
  path, folder = _deal(workdir, cells, retries=1), cells[0].folder(workdir)

  def stop(count: int) -> None:
    process = _start(path)
    until(lambda: executions(workdir)['slow-a'] == count, 120)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=120)

  stop(1)
  stop(2)
  (folder / 'checkpoints' / '7').mkdir(parents=True)  # the second got as far as this
  stop(3)
  stop(4)
  assert _run(path)[0] == task.FAILED
  failed = result(cells[0], workdir, 'failed.json')
  assert (failed['cause'], failed['message']) == (
    'time limit',
    'started 2 times without getting any further',
  )
  assert executions(workdir) == {'slow-a': 4, 'b': 1}  # the other cell goes on
  assert _run(path)[0] == task.FAILED
  assert executions(workdir)['slow-a'] == 4


def test_pods_of_one_job_run_a_cell_together(workdir: Path) -> None:
  """With the variables that launch/kubernetes.py gives them, and Kubernetes their index."""
  cells = make_cells('a', 'fail-b')
  path = _deal(workdir, cells, nodes=2)
  given = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{free_ports(1)[0]}', 'JAX_NUM_PROCESSES': '2'}
  given |= {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  pods = [_start(path, JOB_COMPLETION_INDEX=str(rank), **given) for rank in (0, 1)]
  said = [pod.communicate(timeout=120)[1] for pod in pods]
  assert [state(c.folder(workdir)) for c in cells] == ['done', 'failed'], said
  assert executions(workdir) == {'a': 2, 'fail-b': 2}
  assert pods[0].returncode == task.FAILED, said


def test_a_plugin_runs_as_it_was_when_submitted(workdir: Path, tmp_path: Path) -> None:
  own = tmp_path / 'own.py'
  own.write_text('# first\n')
  plugin.load(str(own))
  (cell,) = make_cells('a')
  cell = Cell(cell.name, cell.variant, cell.config.replace(plugin=str(own)))
  path = _deal(workdir, [cell])
  own.write_text('edited, and no Python any more')
  assert _run(path)[0] == 0
  copy = Path(json.loads((cell.folder(workdir) / 'config.json').read_text())['plugin'])
  assert copy.read_text() == '# first\n'
  assert workdir / 'code' in copy.parents


def test_mistakes_are_one_line(workdir: Path) -> None:
  cells = make_cells('a')
  path = _deal(workdir, cells)
  assert _run(path, 1) == (task.FAILED, 'error: --index=1: there are tasks 0 to 0\n')
  (cells[0].folder(workdir) / 'config.json').unlink()
  status, said = _run(path)
  assert (status, said) == (
    task.FAILED,
    f'error: {cells[0].folder(workdir)}/config.json: no such file; submit the cells again\n',
  )
  path.unlink()
  status, said = _run(path)
  assert status == task.FAILED
  assert said.startswith(f'error: --shares={path}: does not say what to run; ')
