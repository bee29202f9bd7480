"""Hearts that have stopped are told by the observer's own clock, and who slept learns that."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from launch_fakes import FAKE_WORKER, executions, make_cells, result, until

from launch import control
from launch.cells import Claim, ClaimLost, read_json, state, write_config, write_json
from launch.control import Control
from launch.lease import Leases, beats


class Clock:
  """Seconds that pass when told to."""

  now = 0.0

  def __call__(self) -> float:
    return self.now


@pytest.fixture
def clock() -> Clock:
  return Clock()


def _beat(folder: Path, count: int) -> None:
  write_json(folder / 'heartbeat.json', {'count': count})


def _looks(leases: Leases, clock: Clock, folder: Path, claim: dict, seconds: int) -> list[bool]:
  """A look every second."""
  found = []
  for _ in range(seconds):
    clock.now += 1
    found.append(leases.lapsed(folder, claim))
  return found


def test_a_lease_passes_only_while_the_counter_stands_still(tmp_path: Path, clock: Clock) -> None:
  leases, claim = Leases(60, clock), {'token': 'a'}
  _beat(tmp_path, 1)
  assert not any(_looks(leases, clock, tmp_path, claim, 60))
  _beat(tmp_path, 2)  # just in time
  assert not any(_looks(leases, clock, tmp_path, claim, 60))
  assert _looks(leases, clock, tmp_path, claim, 1) == [True]
  assert not leases.lapsed(tmp_path, {'token': 'b'})  # another owner


def test_an_observer_that_slept_has_seen_nothing(tmp_path: Path, clock: Clock) -> None:
  leases, claim = Leases(60, clock), {'token': 'a'}
  leases.lapsed(tmp_path, claim)
  clock.now += 3600  # both machines were suspended
  assert not leases.lapsed(tmp_path, claim)
  assert any(_looks(leases, clock, tmp_path, claim, 60))


def test_a_run_that_says_nothing_beats_all_the_same(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(control, '_ALIVE', 0.02)
  claim = Claim.acquire(tmp_path)
  with Control(claim, False):  # compiling for minutes
    until(lambda: beats(tmp_path) > 3)
  ended = beats(tmp_path)
  with pytest.raises(AssertionError, match='waited in vain'):
    until(lambda: beats(tmp_path) > ended + 1, 0.2)


def test_who_has_lost_its_claim_learns_so_before_it_shows_progress(tmp_path: Path) -> None:
  claim = Claim.acquire(tmp_path)
  with Control(claim, False) as mine:
    held = read_json(tmp_path / 'claim.json')
    assert Claim.take_over(tmp_path, held, beats(tmp_path) - 1) is None  # it has stirred
    other = Claim.take_over(tmp_path, held, beats(tmp_path))
    _beat(tmp_path, 77)
    with pytest.raises(ClaimLost):
      mine.beat(phase='training')
  assert beats(tmp_path) == 77
  other.check()


def test_a_worker_that_slept_past_its_lease_stops_without_harm(workdir: Path) -> None:
  workdir.mkdir()
  (cell,) = make_cells('slow-a')
  folder = cell.folder(workdir)
  write_config(cell, workdir)
  command = [*FAKE_WORKER, f'--workdir={workdir}', f'--cells={cell.folder_name}']
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  until(lambda: executions(workdir))
  assert process.poll() is None
  process.send_signal(signal.SIGSTOP)
  until(lambda: Path(f'/proc/{process.pid}/stat').read_text().split()[2] == 'T')
  taken = Claim.take_over(folder, read_json(folder / 'claim.json'), beats(folder))
  taken.commit({'eval/loss': 1.0})
  before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
  (workdir / 'go').touch()
  process.send_signal(signal.SIGCONT)
  assert process.communicate(timeout=10) == ('', '')
  assert process.returncode == 0
  assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_worker_without_a_launcher_waits_for_a_lease_to_pass(workdir: Path) -> None:
  (cell,) = make_cells('a')
  folder = cell.folder(workdir)
  write_config(cell, workdir)
  Claim.acquire(folder)
  write_json(folder / 'claim.json', {**read_json(folder / 'claim.json'), 'host': 'node7'})
  code = f"""
import sys
sys.path[:0] = {[str(Path(FAKE_WORKER[-1]).parent), str(Path(FAKE_WORKER[-1]).parents[2])]!r}
import fake_worker
from launch import worker
from launch.lease import Leases
worker.Leases, worker._LOOK = lambda: Leases(0.3), 0.05
sys.exit(worker.main(run=fake_worker.run))
"""
  argv = [f'--workdir={workdir}', f'--cells={cell.folder_name}', '--launch=x']
  run = [FAKE_WORKER[0], '-c', code, *argv]
  subprocess.run(run, check=True, timeout=20)
  assert state(folder) == 'running'  # not its business, unless told to wait
  assert not executions(workdir)
  subprocess.run([*run, '--wait', '--retries=1'], check=True, timeout=20)
  assert (state(folder), executions(workdir)) == ('done', {'a': 1})


def test_what_a_lost_cell_of_a_cluster_comes_to(workdir: Path) -> None:
  """A task started again on the same node finds its own claim, of a process that is gone."""
  (cell,) = make_cells('a')
  folder = cell.folder(workdir)
  write_config(cell, workdir)
  Claim.acquire(folder, 'job7')
  write_json(folder / 'claim.json', {**read_json(folder / 'claim.json'), 'start': '1'})
  argv = [f'--workdir={workdir}', f'--cells={cell.folder_name}', '--launch=job7', '--wait']
  subprocess.run([*FAKE_WORKER, *argv, '--retries=0'], check=True, timeout=20)
  failed = result(cell, workdir, 'failed.json')
  gone = f'process {os.getpid()} on {socket.gethostname()} is gone'
  assert (failed['cause'], failed['message']) == ('died', gone)
  write_json(folder / 'failed.json', {**failed, 'tries': 1})
  subprocess.run([*FAKE_WORKER, *argv, '--retries=1'], check=True, timeout=20)
  assert state(folder) == 'done'
