"""A team that loses a process is started again, with one line, and ends as one that did not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import peers
from launch.cells import Cell, write_config
from launch.worker import DISK, STOPPED
from tests.processes import WORKER, cell, environment, phase, read, rows
from tests.teams import FLAGS
from transformer import train

# A worker that does what the file `acts/<start>-<rank>` says: start counts from 0.
FAKE = """
import os, signal, sys, time
from pathlib import Path
team = next(a for a in sys.argv if a.startswith('--distributed=')).partition('=')[2]
rank = team.split(',')[1] if ',' in team else '0'
folder = Path(os.environ['ACTS'])
start = len(list(folder.glob(f'was-*-{rank}')))
(folder / f'was-{start}-{rank}').write_text(' '.join(sys.argv[1:]))
act = folder / f'{start}-{rank}'
exec(act.read_text() if act.exists() else '')
"""
PEERS = """
import sys
from launch import peers
sys.exit(peers.main(sys.argv[1:], [sys.executable, '-c', {!r}]))
"""


class Fakes:
  """launch.peers around fake workers."""

  def __init__(self, folder: Path):
    self.folder = folder / 'acts'
    self.folder.mkdir()

  def act(self, start: int, rank: int, code: str) -> None:
    (self.folder / f'{start}-{rank}').write_text(code)

  def run(self, *arguments: str) -> tuple[int, list[str], float]:
    """Exit status, lines of standard error, seconds."""
    begun = time.monotonic()
    process = self.start(*arguments)
    err = process.communicate(timeout=30)[1]
    return process.returncode, err.splitlines(), time.monotonic() - begun

  def start(self, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, '-c', PEERS.format(FAKE), *arguments]
    env = environment(ACTS=str(self.folder))
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

  def starts(self, rank: int = 0) -> list[list[str]]:
    """The arguments of each start."""
    found = sorted(self.folder.glob(f'was-*-{rank}'))
    return [path.read_text().split() for path in found]


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
  return Fakes(tmp_path)


WAITS = 'time.sleep(60)'
ASKED = 'signal.signal(signal.SIGTERM, lambda *_: os._exit(75)); signal.pause()'
TWO = ('--processes=2', '--', '--workdir=w', '--cells=a')


def test_what_workers_are_told(fakes: Fakes) -> None:
  status, said, _ = fakes.run('--retries=7', *TWO)
  assert (status, said) == (0, [])
  teams = []
  for rank in (0, 1):
    (arguments,) = fakes.starts(rank)
    told = dict(a.removeprefix('--').split('=') for a in arguments if '=' in a)
    assert told['retries'] == '7' and told['cells'] == 'a' and '--wait' in arguments
    address, number, size = told['distributed'].split(',')
    assert (number, size) == (str(rank), '2')
    teams.append(address)
  assert teams[0] == teams[1]
  status, said, _ = fakes.run('--distributed=auto', '--', '--workdir=w', '--cells=a')
  assert '--distributed=auto' in fakes.starts()[1]


@pytest.mark.parametrize(
  ('act', 'how'),
  [('os.kill(os.getpid(), signal.SIGKILL)', 'by SIGKILL'), ('os._exit(70)', 'with status 70')],
)
def test_a_process_that_dies_is_named_and_all_start_again(fakes: Fakes, act: str, how: str) -> None:
  fakes.act(0, 0, WAITS)
  fakes.act(0, 1, act)
  status, said, seconds = fakes.run(*TWO)
  assert status == 0 and seconds < 20
  assert said == [
    f'process 1 of 2 on {os.uname().nodename} ended {how}; all start again from the last checkpoint'
  ]
  assert [len(fakes.starts(rank)) for rank in (0, 1)] == [2, 2]
  launches = {next(a for a in start if a.startswith('--launch=')) for start in fakes.starts()}
  assert len(launches) == 1  # by which tries are counted


def test_starts_that_come_to_nothing_are_not_repeated_for_ever(fakes: Fakes) -> None:
  for start in range(9):
    fakes.act(start, 0, 'os._exit(1)')
  status, said, _ = fakes.run('--distributed=auto', '--', '--workdir=w', '--cells=a')
  assert status == os.EX_UNAVAILABLE
  assert len(said) == len(fakes.starts()) == 3
  assert said[2] == f'the process on {os.uname().nodename} ended with status 1; giving up'


def test_a_process_that_hangs_is_killed(fakes: Fakes) -> None:
  fakes.act(0, 1, 'os.kill(os.getpid(), signal.SIGSTOP)')
  status, said, seconds = fakes.run('--hung=1', *TWO)
  assert status == 0 and seconds < 20
  assert said == [
    'no progress for 1 seconds: a process hangs; all start again from the last checkpoint'
  ]


def test_asked_to_stop(fakes: Fakes) -> None:
  for rank in (0, 1):
    fakes.act(0, rank, ASKED)
  process = fakes.start(*TWO)
  while not (fakes.starts(0) and fakes.starts(1)):
    time.sleep(0.05)
  time.sleep(0.5)  # till they listen
  process.send_signal(signal.SIGTERM)
  assert process.communicate(timeout=10)[1] == ''
  assert process.returncode == STOPPED


def test_a_full_disk_is_the_end(fakes: Fakes) -> None:
  fakes.act(0, 0, f'os._exit({DISK})')
  assert fakes.run(*TWO)[0] == DISK
  assert len(fakes.starts()) == 1


def test_one_process_a_host_or_several_here(capsys: pytest.CaptureFixture) -> None:
  with pytest.raises(SystemExit) as e:
    peers.main(['--processes=2', '--distributed=auto', '--', '--workdir=w'])
  assert e.value.code == 2
  assert 'leave --processes out, or --distributed' in capsys.readouterr().err


def _cell(mesh: str) -> Cell:
  settings = {'train.steps': 30, 'train.log_every': 5, 'train.checkpoint_every': 5}
  settings |= {'train.ffn_statistics': False, 'optim.name': 'adamw(eps=1e-5)'}
  return cell('run', **settings, **{'parallel.mesh': mesh})


def _until(moment: Callable[[], object], process: subprocess.Popen, seconds: float) -> float:
  begun = time.monotonic()
  while not moment():
    assert process.poll() is None
    assert time.monotonic() - begun < seconds
    time.sleep(0.05)
  return time.monotonic() - begun


@pytest.mark.exhaustive
def test_a_real_team_whose_process_is_killed_ends_as_one_left_alone(tmp_path: Path) -> None:
  c = _cell('data:2')
  folder = c.folder(tmp_path)
  write_config(c, tmp_path)
  env = environment(PACE='0.1', XLA_FLAGS=FLAGS.format(1))
  script = PEERS.format(WORKER)
  arguments = ['--processes=2', '--', f'--workdir={tmp_path}', f'--cells={c.folder_name}']
  command = [sys.executable, '-c', script, *arguments]
  with open(tmp_path / 'said.txt', 'w') as said:
    process = subprocess.Popen(command, env=env, stderr=said)
  try:
    _until(lambda: len(rows(folder)) > 1 and phase(folder) == 'training', process, 120)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    leader = read(folder / 'claim.json')['pid']
    (other,) = (int(pid) for pid in children if int(pid) != leader)
    os.kill(other, signal.SIGKILL)
    told = (tmp_path / 'said.txt').read_text
    assert _until(lambda: 'start again' in told(), process, 60) < 60
    assert process.wait(timeout=180) == 0
  finally:
    process.terminate()
  lines = [line for line in told().splitlines() if 'start again' in line]
  assert lines == [
    f'process 1 of 2 on {os.uname().nodename} ended by SIGKILL; '
    'all start again from the last checkpoint'
  ]
  alone = tmp_path / 'alone'
  alone.mkdir()
  train.run(_cell('data:1').config, alone)
  ours, theirs = ([r['train/loss'] for r in rows(f) if 'train/loss' in r] for f in (folder, alone))
  assert ours == pytest.approx(theirs, rel=1e-4) and len(ours) == 6
