"""Arrays on a real Slurm of two nodes: shared out, signalled, requeued, drained, refused."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_fakes import executions, make_cells, result, until
from slurm_cluster import Absent, Cluster, absent, free_ports

from launch import shares, slurm
from launch.cells import Cell, read_json, state, write_config
from launch.job import Job
from tests import processes
from transformer.config import LaunchConfig
from transformer.errors import UserError

on_slurm = pytest.mark.skipif(bool(absent()), reason=absent())
FAKE_TASK = (str(Path(__file__).with_name('fake_task.py')),)


@pytest.fixture(scope='module')
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
  cluster = Cluster(tmp_path_factory.mktemp('slurm'))
  try:
    cluster.start()
  except Absent as e:
    pytest.skip(str(e))
  with contextlib.closing(cluster):
    yield cluster


@pytest.fixture
def cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
  """The cluster, on which tasks only pretend to train, and which is empty again afterwards."""
  monkeypatch.setenv('SLURM_CONF', str(running.config))
  monkeypatch.setattr(shares, 'TASK', FAKE_TASK)
  yield running
  running.restore()


def _job(workdir: Path, cells: list[Cell], report: bool = False, **launch: object) -> Job:
  for cell in cells:
    write_config(cell, workdir)
  names = tuple(cell.folder_name for cell in cells)
  return Job(workdir, names, LaunchConfig(workers=1, grace=5, **launch), report)


def _states(record: dict) -> set[str]:
  return set(slurm.states(record).values())


def _log(workdir: Path) -> str:
  return '\n'.join(p.read_text() for p in (workdir / 'tasks').glob('*.log'))


@on_slurm
def test_an_array_of_four_cells(cluster: Cluster, workdir: Path) -> None:
  cells = make_cells('a', 'b', 'slow-c', 'fail-d')
  record = json.loads(json.dumps(slurm.submit(_job(workdir, cells, throttle=2))))
  assert len(record['cells']) == 4
  assert slurm.submit(_job(workdir, cells, throttle=2)) == record  # it is in the queue already
  until(lambda: executions(workdir) == dict.fromkeys(('a', 'b', 'slow-c', 'fail-d'), 1), 120)
  until(
    lambda: [state(c.folder(workdir)) for c in cells] == ['done', 'done', 'running', 'failed'], 120
  )
  until(lambda: sorted(slurm.states(record).values()) == ['gone', 'gone', 'gone', 'running'], 120)
  assert slurm.states(record)[cells[2].folder_name] == 'running'
  (workdir / 'go').touch()
  until(lambda: _states(record) == {'gone'}, 120)
  assert state(cells[2].folder(workdir)) == 'done', _log(workdir)
  assert executions(workdir) == dict.fromkeys(('a', 'b', 'slow-c', 'fail-d'), 1)


@on_slurm
def test_processes_of_two_nodes_run_a_cell_together(
  cluster: Cluster, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Ranks and size are Slurm's; only the coordinator is named: both nodes are this machine."""
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', f'127.0.0.1:{free_ports(1)[0]}')
  monkeypatch.delenv('XLA_FLAGS')
  cells = make_cells('a', 'b')
  record = slurm.submit(_job(workdir, cells, nodes=2, cpus=1, per_task=2))
  until(lambda: _states(record) == {'gone'}, 120)
  assert [state(c.folder(workdir)) for c in cells] == ['done', 'done'], _log(workdir)
  assert [(workdir / f'rank-{i}').read_text() for i in (0, 1)] == ['alpha', 'beta']
  assert executions(workdir) == {'a': 2, 'b': 2}  # the first led, the second followed
  for cell in cells:
    logs = [cell.folder(workdir) / name for name in ('log.txt', 'log-1.txt')]
    assert [log.read_text() for log in logs] == [f'running {cell.folder_name}\n'] * 2


@on_slurm
def test_before_its_limit_a_task_saves_its_state_and_is_requeued(
  cluster: Cluster, workdir: Path
) -> None:
  cells = make_cells('slow-a', 'slow-b')
  record = slurm.submit(_job(workdir, cells, per_task=2))
  assert record['cells'] == [[c.folder_name for c in cells]]
  task = f'{record["array"]}_0'
  until(lambda: executions(workdir), 120)
  cluster.run('scancel', '--batch', '--signal=USR1', task)
  cluster.start_again(task)
  assert (cells[0].folder(workdir) / 'checkpoint').exists()
  assert _states(record) == {'running'}
  until(lambda: executions(workdir)['slow-a'] == 2, 120)
  (workdir / 'go').touch()
  until(lambda: _states(record) == {'gone'}, 120)
  assert [state(c.folder(workdir)) for c in cells] == ['done', 'done'], _log(workdir)
  assert executions(workdir) == {'slow-a': 2, 'slow-b': 1}


@on_slurm
def test_a_task_that_has_the_number_of_its_array_requeues_itself_alone(
  cluster: Cluster, workdir: Path
) -> None:
  cells = make_cells('slow-a', 'slow-b')
  record = slurm.submit(_job(workdir, cells))
  until(lambda: len(executions(workdir)) == 2, 120)
  rows = cluster.run('squeue', '-h', '-r', '-j', record['array'], '-o', '%A %F %K').splitlines()
  [index] = [row.split()[2] for row in rows if row.split()[0] == row.split()[1]]
  mine, other = (f'{record["array"]}_{i}' for i in (index, 1 - int(index)))
  cluster.run('scancel', '--batch', '--signal=USR1', mine)
  cluster.start_again(mine)
  until(lambda: max(executions(workdir).values()) == 2, 120)
  assert cluster.run('squeue', '-h', '-r', '-j', other, '-o', '%T') == 'RUNNING'
  assert sorted(executions(workdir).values()) == [1, 2]
  (workdir / 'go').touch()
  until(lambda: _states(record) == {'gone'}, 120)
  assert [state(c.folder(workdir)) for c in cells] == ['done', 'done'], _log(workdir)


@on_slurm
@pytest.mark.exhaustive
def test_training_that_was_requeued_equals_the_undisturbed_and_its_code_is_the_snapshot(
  cluster: Cluster, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(shares, 'TASK', ('-m', 'launch.task'))
  monkeypatch.delenv('XLA_FLAGS')
  for name, value in processes.environment().items():
    monkeypatch.setenv(name, value)
  cell = processes.cell('a', **{'train.steps': 400, 'train.eval_every': 200})
  folder = cell.folder(workdir)
  workdir.with_name('calm').mkdir()
  calm = processes.start_worker(workdir.with_name('calm'), cell)
  record = slurm.submit(_job(workdir, [cell], report=True))
  task = f'{record["array"]}_0'
  until(lambda: (read_json(folder / 'heartbeat.json') or {}).get('step', 0) > 20, 120)
  cluster.run('scancel', '--batch', '--signal=USR1', task)
  cluster.start_again(task)
  assert 20 < max(processes.saved_steps(folder)) < 400
  until(lambda: _states(record) == {'gone'}, 120)
  assert state(folder) == 'done', _log(workdir)
  assert calm.wait(60) == 0
  other = cell.folder(workdir.with_name('calm'))
  assert processes.rows(folder) == processes.rows(other)
  processes.assert_same_params(folder, other)
  (code,) = (workdir / 'code').iterdir()
  provenance = json.loads((folder / 'provenance.json').read_text())
  assert len(provenance['earlier_sittings']) == 1
  assert provenance['git_commit'] == (code / 'COMMIT').read_text()
  until(lambda: 'experiment.json' in _log(workdir), 120)  # what the report misses, once all is done


@on_slurm
def test_what_is_cancelled_saves_its_state_and_does_not_come_back(
  cluster: Cluster, workdir: Path
) -> None:
  cells = make_cells('slow-a', 'slow-b')
  record = slurm.submit(_job(workdir, cells, throttle=1))
  until(lambda: executions(workdir), 120)
  assert sorted(slurm.states(record).values()) == ['running', 'waiting']
  slurm.cancel(record)
  until(lambda: _states(record) == {'gone'}, 120)
  begun = [(c.folder(workdir) / 'checkpoint').exists() for c in cells]
  assert begun == [True, False], _log(workdir)
  assert not any((c.folder(workdir) / 'claim.json').exists() for c in cells)
  assert cluster.run('squeue', '-h') == ''
  slurm.cancel(record)  # again: no harm


@on_slurm
def test_a_node_that_is_drained_in_mid_run_finishes_its_task(
  cluster: Cluster, workdir: Path
) -> None:
  cells = make_cells('slow-a', 'b')
  record = slurm.submit(_job(workdir, cells, throttle=1))
  until(lambda: executions(workdir), 120)
  first = cluster.node_of(f'{record["array"]}_0')
  cluster.run('scontrol', 'update', f'NodeName={first}', 'State=drain', 'Reason=test')
  (workdir / 'go').touch()
  until(lambda: _states(record) == {'gone'}, 120)
  assert [state(c.folder(workdir)) for c in cells] == ['done', 'done'], _log(workdir)
  assert executions(workdir) == {'slow-a': 1, 'b': 1}
  other = {'alpha': 'beta', 'beta': 'alpha'}[first]
  assert [result(c, workdir)['node'] for c in cells] == [first, other]


@on_slurm
def test_the_task_of_a_node_that_dies_is_run_on_another(cluster: Cluster, workdir: Path) -> None:
  cells = make_cells('slow-a', 'b')
  record = slurm.submit(_job(workdir, cells, throttle=1))
  task = f'{record["array"]}_0'
  until(lambda: executions(workdir), 120)
  first = cluster.node_of(task)
  cluster.kill(first)
  cluster.start_again(task)
  until(lambda: executions(workdir)['slow-a'] == 2, 120)
  (workdir / 'go').touch()
  until(lambda: _states(record) == {'gone'}, 120)
  assert [state(c.folder(workdir)) for c in cells] == ['done', 'done'], _log(workdir)
  assert executions(workdir) == {'slow-a': 2, 'b': 1}
  assert first not in [result(c, workdir)['node'] for c in cells]


@on_slurm
@pytest.mark.exhaustive
def test_a_task_that_never_gets_further_is_given_up(cluster: Cluster, workdir: Path) -> None:
  cells = make_cells('slow-a')
  record = slurm.submit(_job(workdir, cells, retries=0))
  task = f'{record["array"]}_0'
  until(lambda: executions(workdir), 120)
  cluster.run('scancel', '--batch', '--signal=USR1', task)
  cluster.start_again(task)
  until(lambda: _states(record) == {'gone'}, 120)
  failed = result(cells[0], workdir, 'failed.json')
  assert (failed['cause'], failed['attempts']) == ('time limit', 1), _log(workdir)
  assert failed['message'] == 'started 1 times without getting any further'
  assert executions(workdir) == {'slow-a': 1}


@on_slurm
@pytest.mark.parametrize(
  ('launch', 'said'),
  [
    (
      {'partition': 'nope'},
      'sbatch: Batch job submission failed: Invalid partition name specified',
    ),
    ({'gpus': 2}, 'sbatch: Invalid generic resource (gres) specification'),
  ],
)
def test_what_slurm_refuses_is_one_line(
  cluster: Cluster, workdir: Path, launch: dict, said: str
) -> None:
  with pytest.raises(UserError) as e:
    slurm.submit(_job(workdir, make_cells('a'), **launch))
  assert str(e.value) == said


@on_slurm
def test_too_large_an_array(cluster: Cluster, workdir: Path) -> None:
  with pytest.raises(UserError) as e:
    slurm.submit(_job(workdir, make_cells(*'abcdefghi')))
  assert str(e.value) == (
    '--launch.per_task=1: makes 9 tasks, of which Slurm takes 8 in an array here; choose 2'
  )
  assert not (workdir / 'tasks').exists()


def test_the_script_is_shown_and_values_are_quoted(
  workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv('PYTHONPATH', '')
  evil = workdir.with_name("it's $(touch owned); %a")
  launch = dict(partition='a b;c', account="o'x", qos='$HOME', time='1:30:00', memory='16G', gpus=2)
  launch |= dict(cpus=4, throttle=3, setup='module load cuda', per_task=2)
  job = Job(evil, ('a-1', 'b-2', 'c-3'), LaunchConfig(**launch), report=True)
  array, script, *report = slurm.plan(job).split("<<'END'\n")
  folder = str(evil).replace('%', '%%').replace("'", "'\"'\"'")
  for part in (
    '--array=0-1%3',
    "'--partition=a b;c'",
    """'--account=o'"'"'x'""",
    "'--qos=$HOME'",
    '--time=1:30:00 ',
    '--signal=B:USR1@120',
    '--mem=16G --gres=gpu:2',
    f"'--output={folder}/tasks/isoffn-",
  ):
    assert part in array
  lines = script.splitlines()
  assert lines[:3] == ['#!/bin/bash', 'module load cuda', 'export PYTHONSAFEPATH=1']
  quoted = str(evil).replace("'", "'\"'\"'")
  assert lines[3].startswith(f"export PYTHONPATH='{quoted}/code/")
  assert lines[4].startswith(f"exec {sys.executable} -m launch.task '--shares={quoted}/tasks/")
  assert lines[4].endswith('''.json' --index="$SLURM_ARRAY_TASK_ID"''')
  assert '--dependency=afterany:ARRAY' in lines[6]
  assert f"-m experiments.report '--workdir={quoted}'" in report[0]
  assert not evil.exists()
  assert not os.path.exists('owned')


@pytest.mark.parametrize(
  ('launch', 'said'),
  [
    ({'time': 'soon'}, "--launch.time='soon': should be a limit as Slurm writes it: minutes, "),
    ({'time': '2:00'}, '--launch.time=2:00: is not longer than --launch.grace=120'),
    ({'memory': 'much'}, "--launch.memory='much': should be a number and M, G or T, as in '16G'"),
    ({'partition': 'a\nb'}, "--launch.partition='a\\nb': should be one line of plain text"),
    ({'account': '--wrap=x'}, "--launch.account='--wrap=x': should be one line of plain text"),
    ({'setup': 'a\nb'}, "--launch.setup='a\\nb': should be one line of plain text"),
  ],
)
def test_values_that_cannot_be(workdir: Path, launch: dict, said: str) -> None:
  with pytest.raises(UserError) as e:
    slurm.plan(Job(workdir, ('a-1',), LaunchConfig(**launch), report=False))
  assert str(e.value).startswith(said)


def test_where_there_is_no_slurm(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv('PATH', str(workdir))
  with pytest.raises(UserError) as e:
    slurm.submit(_job(workdir, make_cells('a')))
  assert str(e.value) == (
    "scontrol: no such command here; run this where Slurm's commands are, as on a login node"
  )
