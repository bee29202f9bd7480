"""A sweep under fire: workers and launchers are killed and paused at random moments.

  python -m tests.soak --kills=50

A launcher with a worker of its own and a worker as a cluster would start it share the cells of one
folder. At random moments one of the three is killed, or paused, and may be so for longer than its
lease; it is started again where it is gone. In the end every cell has one result, committed once,
and its metrics are those of a sweep that nobody disturbed. Rounds follow each other until so many
kills have been made. Ends with one line of JSON; with an AssertionError where something was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from launch.cells import Cell
from launch.claims import process_start
from tests.processes import ROOT, WORKER, assert_same_params, cell, environment, rows

_LEASE = 3.0  # seconds, so that a pause can outlast it
_SETTINGS = {
  'train.steps': 40,
  'train.log_every': 3,
  'train.checkpoint_every': 7,
  'train.eval_every': 20,
  'train.ffn_statistics': False,
  'model.dropout': 0.1,
}
_HASTE = f"""
from launch import control, lease
control._ALIVE = 0.5
lease.Leases.__init__.__defaults__ = ({_LEASE}, *lease.Leases.__init__.__defaults__[1:])
"""
_LAUNCHER = """
import sys
from launch import local
from tests import soak
outcome = local.run(sys.argv[1], soak.cells(int(sys.argv[2])), 1, None, soak.WORKERS, 10_000)
sys.exit(bool(outcome.failed or outcome.elsewhere or outcome.interrupted))
"""
WORKERS = (sys.executable, '-c', _HASTE + WORKER)


def cells(number: int) -> list[Cell]:
  """Those of a sweep: seeds and rates of one shape."""
  return [
    cell(f'cell{i}', **_SETTINGS, seed=i, **{'optim.learning_rate': 0.01 * (1 + i % 3)})
    for i in range(number)
  ]


@dataclass
class Round:
  """One sweep. number: of cells. cluster: with a worker beside the launcher's.

  told: what was done to whom, and how often. tokens: of results, as first seen.
  """

  workdir: Path
  number: int
  chance: random.Random
  cluster: bool = True
  pace: float = 0.02
  told: Counter = field(default_factory=Counter)
  tokens: dict[str, str] = field(default_factory=dict)

  def run(self, kills: int) -> None:
    """Disturbs the sweep until it is through, or left alone after so many kills."""
    self.workdir.mkdir(parents=True)
    self.cells = cells(self.number)
    actors = {'launcher': self._launcher()}
    if self.cluster:
      actors['worker'] = self._worker()
    try:
      while not self._through(actors):
        if sum(n for what, n in self.told.items() if what.startswith('killed')) < kills:
          time.sleep(self.chance.uniform(0.2, 4.0))
          self._disturb(actors)
        else:
          time.sleep(0.2)
    finally:
      for process in actors.values():
        process.kill()
        process.wait()

  def _launcher(self) -> subprocess.Popen:
    return self._start([sys.executable, '-c', _LAUNCHER, str(self.workdir), str(self.number)])

  def _worker(self) -> subprocess.Popen:
    names = [c.folder_name for c in self.cells[::-1]]
    more = ['--wait', '--launch=cluster', '--retries=10000', '--cells', *names]
    return self._start([*WORKERS, f'--workdir={self.workdir}', *more])

  def _start(self, command: list[str]) -> subprocess.Popen:
    from launch.cells import write_config

    for c in self.cells:  # whoever comes first
      if not (c.folder(self.workdir) / 'config.json').exists():
        write_config(c, self.workdir)
    env = environment(PACE=str(self.pace), XLA_FLAGS='--xla_cpu_multi_thread_eigen=false')
    with open(self.workdir / 'soak.log', 'ab') as log:
      return subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
      )

  def _through(self, actors: dict[str, subprocess.Popen]) -> bool:
    """Whether every cell is done and nobody is at work; starts again who has gone too early."""
    for c in self.cells:
      with contextlib.suppress(FileNotFoundError):
        token = json.loads((c.folder(self.workdir) / 'done.json').read_text())['token']
        assert self.tokens.setdefault(c.name, token) == token, f'{c.name}: committed twice'
    done = len(self.tokens) == self.number
    for name, process in actors.items():
      if process.poll() is not None and not done:
        status = process.returncode
        assert status in (0, -signal.SIGKILL, os.EX_TEMPFAIL), f'{name} ended with {status}'
        actors[name] = self._launcher() if name == 'launcher' else self._worker()
    return done and all(process.poll() is not None for process in actors.values())

  def _disturb(self, actors: dict[str, subprocess.Popen]) -> None:
    """Kills or pauses one of those that live."""
    pids = {name: p.pid for name, p in actors.items() if p.poll() is None}
    if 'launcher' in pids and (children := _children(pids['launcher'])):
      pids['child'] = children[0]
    if not pids:
      return
    name = self.chance.choice(sorted(pids))
    pid, start = pids[name], process_start(pids[name])
    if not start:
      return  # it has ended between two looks; the next moment will do
    way = self.chance.choice(['killed'] * 3 + ['paused', 'paused past its lease'])
    if way == 'killed':
      assert process_start(pid) == start, 'was not alive when killed'
      os.kill(pid, signal.SIGKILL)
    else:
      os.kill(pid, signal.SIGSTOP)
      time.sleep(self.chance.uniform(0.1, 1.0) + (_LEASE + 1.0) * (way != 'paused'))
      assert process_start(pid) == start, 'was not alive when woken'
      os.kill(pid, signal.SIGCONT)
    self.told[f'{way} {name}'] += 1


def _children(pid: int) -> list[int]:
  path = Path(f'/proc/{pid}/task/{pid}/children')
  with contextlib.suppress(OSError):
    return [int(child) for child in path.read_text().split()]
  return []


def assert_undisturbed(workdir: Path, undisturbed: Path, number: int) -> None:
  """Every cell has the rows, the weights and the loss of the one that was left alone."""
  for c in cells(number):
    mine, theirs = c.folder(workdir), c.folder(undisturbed)
    assert rows(mine) == rows(theirs), c.name
    assert_same_params(mine, theirs)
    lines = (mine / 'metrics.jsonl').read_text().splitlines()
    assert all(map(json.loads, lines))
    losses = [json.loads((f / 'done.json').read_text())['eval/loss'] for f in (mine, theirs)]
    assert losses[0] == losses[1], c.name
    assert not (mine / 'claim.json').exists(), c.name


def soak(workdir: Path, kills: int, number: int, seed: int, cluster: bool = True) -> dict:
  """Rounds of sweeps of `number` cells until `kills` kills; returns what was done.

  cluster: with a worker beside the launcher's.
  """
  chance, told, rounds = random.Random(seed), Counter(), 0
  alone = Round(workdir / 'undisturbed', number, chance, cluster=False, pace=0.0)
  alone.run(0)
  while (made := sum(n for what, n in told.items() if what.startswith('killed'))) < kills:
    one = Round(workdir / f'round-{rounds}', number, chance, cluster)
    one.run(kills - made)
    told, rounds = told + one.told, rounds + 1
    assert_undisturbed(one.workdir, alone.workdir, number)
    print(f'round {rounds}: {dict(one.told)}', flush=True)
  return {'seed': seed, 'kills': made, 'rounds': rounds, 'cells': number, **told}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--cells', type=int, default=6)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--workdir', type=Path, help='where it is to stay; else it is removed')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    cache = Path(scratch) / 'programs'
    os.environ |= {
      'ISOFFN_CACHE': f'{scratch}/data',
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    }
    begun = time.monotonic()
    found = soak(args.workdir or Path(scratch) / 'runs', args.kills, args.cells, args.seed)
    print(json.dumps({**found, 'seconds': round(time.monotonic() - begun)}))


if __name__ == '__main__':
  main()
