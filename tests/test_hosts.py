"""Several real processes train one run as one process does, and continue each other's."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cells import Cell
from launch.worker import STOPPED
from tests import battery
from tests.processes import cell, phase, read, rows, saved_steps
from tests.teams import run_team, start_team
from transformer import hosts, train
from transformer.config.placement import Rank, parse_distributed
from transformer.errors import UserError

# Noise, micro-batches, a row of sums that a checkpoint cuts in two.
SETTINGS = {
  'data.batch_size': 16,
  'train.accumulate': 2,
  'train.steps': 12,
  'train.log_every': 4,
  'train.checkpoint_every': 5,
  'train.eval_every': 6,
  'train.ffn_statistics': False,
  'model.dropout': 0.1,
  'ffn.activation': 'swiglu',
  'optim.name': 'adamw(eps=1e-5)',
}
MORE = {'train.diagnose': 7, 'train.ffn_statistics': True}
EXPERTS = {
  'model.dropout': 0.0,
  'model.num_layers': 2,
  'moe.experts': 4,
  'moe.router': 'bias(rate=0.01)',
  'moe.dispatch': 'expert_parallel',
  'moe.capacity_factor': 2.0,
  'moe.group_size': 4,
}


def _cell(mesh: str = '', **changes: object) -> Cell:
  return cell('run', **SETTINGS | {'parallel.mesh': mesh} | changes)


@pytest.fixture(scope='module')
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The folder of the run as one process on one device makes it."""
  folder = tmp_path_factory.mktemp('alone')
  train.run(_cell('data:1').config, folder)
  return folder


def assert_agrees(folder: Path, alone: Path) -> None:
  """Every row and the result, up to the order of sums."""
  got, expected = rows(folder), rows(alone)
  assert [sorted(row) for row in got] == [sorted(row) for row in expected]
  for ours, theirs in zip(got, expected, strict=True):
    for name, value in theirs.items():
      assert ours[name] == pytest.approx(value, rel=2e-3, abs=2e-5), (theirs['step'], name)
  losses = [row['eval/loss'] for row in got if 'eval/loss' in row]
  assert losses == pytest.approx([r['eval/loss'] for r in expected if 'eval/loss' in r], rel=1e-5)
  assert len(losses) == 2 and abs(losses[0] - losses[1]) > 1e-3  # something was learnt


def assert_each_read_its_part(workdir: Path, parts: int) -> None:
  """And no more than that, but of the batch that train.diagnose looks into."""
  reads = [tuple(map(int, x.split())) for x in (workdir / 'reads.txt').read_text().splitlines()]
  looked_into = MORE['train.diagnose'] - 1
  assert {tuple(part) for i, *part in reads if i != looked_into} == {
    (part, parts) for part in range(parts)
  }


def assert_files(folder: Path, processes: int) -> None:
  """What is written once is written by the first process, and there is nothing else."""
  logs = ['log.txt', *(f'log-{rank}.txt' for rank in range(1, processes))]
  ours = ['checkpoints', 'config.json', 'done.json', 'heartbeat.json', 'metrics.jsonl']
  found = [p.name for p in folder.iterdir() if p.name[0] != '.' and p.name != 'experts.json']
  assert sorted(found) == sorted([*logs, *ours, 'provenance.json'])
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == len(set(lines))


def _stop_when(begun: Callable[[], object], asked: int, team: list) -> None:
  """Asks one process of a team to stop; all do."""
  end = time.monotonic() + 600
  try:
    while not begun():
      assert [process.poll() for process in team] == [None] * len(team)
      assert time.monotonic() < end
      time.sleep(0.05)
    team[asked].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=300) for process in team] == [STOPPED] * len(team)
  finally:
    for process in team:
      process.kill()


def test_two_processes_are_as_one_and_one_goes_on_where_they_stopped(
  tmp_path: Path, alone: Path
) -> None:
  """Parameters lie across the processes; the one asked to stop is not the one that leads."""
  two = _cell('fsdp:2')
  folder = two.folder(tmp_path)
  team = start_team(tmp_path, 2, 1, two, pace=0.05)
  _stop_when(lambda: any(row['step'] >= 4 for row in rows(folder)), 1, team)
  assert 4 <= max(saved_steps(folder)) < 12
  assert not (folder / 'claim.json').exists()
  assert_each_read_its_part(tmp_path, 2)
  before = rows(folder)
  train.run(_cell('data:1').config, folder)
  assert rows(folder)[: len(before)] == before
  assert_agrees(folder, alone)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ('changes', 'meshes', 'parts'),
  [
    (MORE, ('data:2,fsdp:2,tensor:2', 'data:4', 'fsdp:2'), 4),
    (MORE, ('tensor:4,data:2', 'fsdp:4', 'tensor:2'), 1),  # all read all rows
    (EXPERTS, ('data:2,expert:4', 'expert:4', 'expert:1'), 4),
  ],
)
def test_four_processes_then_two_then_one(
  tmp_path: Path, changes: dict, meshes: tuple[str, str, str], parts: int
) -> None:
  """Each sitting on other devices than the one before; whole, and stopped twice."""
  alone = tmp_path / 'alone'
  alone.mkdir()
  train.run(_cell(meshes[2] if changes is EXPERTS else 'data:1', **changes).config, alone)
  four, two, one = (_cell(mesh, **changes) for mesh in meshes)
  assert run_team(tmp_path / 'whole', 4, 2, four) == [0] * 4
  assert_files(four.folder(tmp_path / 'whole'), 4)
  assert_each_read_its_part(tmp_path / 'whole', parts)
  assert_agrees(four.folder(tmp_path / 'whole'), alone)
  folder = one.folder(tmp_path)
  for processes, devices, sitting, least in ((4, 2, four, 3), (2, 2, two, 7)):
    team = start_team(tmp_path, processes, devices, sitting, pace=0.05)
    _stop_when(lambda: phase(folder) == 'training' and step(folder) >= least, 0, team)  # noqa: B023
  assert run_team(tmp_path, 1, 2, one) == [0]
  assert_agrees(folder, alone)


def step(folder: Path) -> int:
  return read(folder / 'heartbeat.json')['step']


def test_who_a_process_is() -> None:
  assert parse_distributed('off') == 'off' and parse_distributed('auto') == 'auto'
  assert parse_distributed('host-0.jobs:8476,1,4') == Rank('host-0.jobs:8476', 1, 4)


@pytest.mark.parametrize('text', ['', 'on', 'host:1,2', 'host,0,2', 'host:1,2,2', 'host:x,0,2'])
def test_who_a_process_cannot_be(text: str) -> None:
  with pytest.raises(UserError) as e:
    battery.tiny(**{'parallel.distributed': text})
  assert str(e.value) == (
    f'--parallel.distributed={text}: should be off, auto, or coordinator:port,rank,size with a '
    'rank below size, as in 10.0.0.1:1234,0,2'
  )


def test_pmap_is_for_one_process() -> None:
  with pytest.raises(UserError) as e:
    battery.tiny(**{'parallel.mode': 'pmap', 'parallel.distributed': 'auto', 'parallel.mesh': ''})
  assert str(e.value) == '--parallel.mode=pmap: is for one process; of several the mode is mesh'


def test_what_the_cluster_tells(monkeypatch: pytest.MonkeyPatch) -> None:
  """By Slurm, by an indexed job, by neither: what is left out, jax finds."""
  for name in ('SLURM_STEP_NUM_NODES', 'SLURM_STEP_NUM_TASKS', 'JOB_COMPLETION_INDEX'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(hosts.jax.config, 'update', lambda name, value: None)
  asked = []
  monkeypatch.setattr(hosts.jax.distributed, 'initialize', lambda **known: asked.append(known))

  def known(**env: str) -> dict:
    for name, value in env.items():
      monkeypatch.setenv(name, value)
    hosts.start('auto')
    return {k: v for k, v in asked.pop().items() if not k.endswith(('timeout', 'seconds'))}

  assert known() == {}
  assert known(SLURM_STEP_NUM_NODES='2', SLURM_STEP_NUM_TASKS='16') == {}
  assert known(SLURM_STEP_NUM_TASKS='2') == {'local_device_ids': []}  # all of a node's
  job = dict(JAX_COORDINATOR_ADDRESS='job-0.jobs:8476', JAX_NUM_PROCESSES='2')
  found = known(**job, JOB_COMPLETION_INDEX='1')
  assert found == {'num_processes': 2, 'process_id': 1, 'local_device_ids': []}
  hosts.start('off')
  assert not asked


def test_processes_that_do_not_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
  def initialize(**known: object) -> None:
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(hosts.jax.config, 'update', lambda name, value: None)
  monkeypatch.setattr(hosts.jax.distributed, 'initialize', initialize)
  with pytest.raises(UserError) as e:
    hosts.start('auto')
  assert str(e.value) == (
    '--parallel.distributed=auto: the processes did not come together (coordinator_address should '
    'be defined.); give each coordinator:port,rank,size'
  )
