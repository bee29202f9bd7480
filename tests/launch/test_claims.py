"""One process at a time, one result ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launch_fakes import ROOT, until

from launch import claims
from launch.cells import Claim, ClaimLost, state
from launch.files import read_json, write_json

RACER = """
import sys
from launch.claims import Claim
print('ready', flush=True)
for folder in sys.stdin:
  claim = Claim.acquire(folder.strip())
  print('won' if claim else 'lost', flush=True)
"""
HOLDER = """
import sys, time
from launch.claims import Claim
print(Claim.acquire(sys.argv[1]).token, flush=True)
time.sleep(60)
"""


def _python(code: str, *args: str) -> subprocess.Popen:
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  pipe = subprocess.PIPE
  command = [sys.executable, '-c', code, *args]
  return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)


def test_of_two_racing_processes_exactly_one_wins(tmp_path: Path) -> None:
  racers = [_python(RACER) for _ in range(2)]
  try:
    assert [r.stdout.readline() for r in racers] == ['ready\n'] * 2
    wins = [0, 0]
    for i in range(200):
      folder = tmp_path / str(i)
      folder.mkdir()
      for r in racers if i % 2 else racers[::-1]:
        r.stdin.write(f'{folder}\n')
        r.stdin.flush()
      said = [r.stdout.readline() for r in racers]
      assert sorted(said) == ['lost\n', 'won\n']
      wins[said.index('won\n')] += 1
    assert min(wins) > 0  # else they never raced
  finally:
    for r in racers:
      r.communicate(timeout=5)


def test_takeover_only_after_the_holder_is_killed(tmp_path: Path) -> None:
  process = _python(HOLDER, str(tmp_path))
  process.stdout.readline()
  assert process.poll() is None
  assert state(tmp_path) == 'running'
  assert Claim.acquire(tmp_path) is None
  process.send_signal(signal.SIGKILL)
  until(lambda: state(tmp_path) == 'todo')  # a zombie: killed, not yet waited for
  assert Claim.acquire(tmp_path) is not None
  process.communicate()


def test_the_former_owner_loses_check_commit_and_fail(tmp_path: Path) -> None:
  old = Claim.acquire(tmp_path)
  current = read_json(tmp_path / 'claim.json')
  write_json(tmp_path / 'claim.json', {**current, 'start': '1'})  # as if its pid were used again
  new = Claim.acquire(tmp_path)
  new.check()
  for lost in (old.check, lambda: old.commit({}), lambda: old.fail('bug', 'm')):
    with pytest.raises(ClaimLost, match=f'now held by process {os.getpid()} on '):
      lost()
  old.release()
  new.check()
  assert state(tmp_path) == 'running'
  assert not (tmp_path / 'done.json').exists()
  assert not (tmp_path / 'failed.json').exists()


@pytest.mark.parametrize('links', [True, False])
def test_commit_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
  if not links:  # a file system without hard links

    def refuse(source: str, target: str) -> None:
      raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(os, 'link', refuse)
  failing = Claim.acquire(tmp_path)
  failing.fail('bug', 'm')
  first = Claim.acquire(tmp_path)
  held = (tmp_path / 'claim.json').read_text()
  first.commit({'step': 1})
  assert not (tmp_path / 'failed.json').exists()
  (tmp_path / 'claim.json').write_text(held)  # a second commit that passes the check all the same
  with pytest.raises(ClaimLost, match='is done already'):
    first.commit({'step': 2})
  assert read_json(tmp_path / 'done.json') == {'step': 1, 'token': first.token}
  assert state(tmp_path) == 'done'
  assert Claim.acquire(tmp_path) is None
  assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock', 'claim.json', 'done.json']


def test_failures_are_counted_and_can_be_tried_again(tmp_path: Path) -> None:
  for attempt in (1, 2):
    Claim.acquire(tmp_path).fail('bug', 'two\n lines', 'log')
    assert state(tmp_path) == 'failed'
    failed = read_json(tmp_path / 'failed.json')
    assert (failed['attempts'], failed['message']) == (attempt, 'two lines')


def test_a_launch_tries_a_cell_once(tmp_path: Path) -> None:
  Claim.acquire(tmp_path, 'one').fail('bug', 'm')
  assert Claim.acquire(tmp_path, 'one') is None
  other = Claim.acquire(tmp_path, 'two')
  dead = {**read_json(tmp_path / 'claim.json'), 'start': '1'}
  write_json(tmp_path / 'claim.json', dead)
  assert Claim.acquire(tmp_path, 'two') is None  # left to the launcher to charge
  assert Claim.acquire(tmp_path, 'two', retry=True) is not None
  assert other.token == dead['token']


@pytest.mark.parametrize(
  ('change', 'live'),
  [
    ({'host': 'elsewhere', 'pid': 1}, True),  # cannot be seen from here: respected
    ({'namespace': 'pid:[1]'}, True),  # another container of this host
    ({'boot': 'earlier'}, False),  # this host, before it was restarted
    ({'pid': None}, False),
  ],
)
def test_whose_claims_are_respected(tmp_path: Path, change: dict, live: bool) -> None:
  Claim.acquire(tmp_path)
  claim = {**read_json(tmp_path / 'claim.json'), **change}
  write_json(tmp_path / 'claim.json', claim)
  assert (claims.holder(tmp_path) is not None) == live
  assert claims.is_foreign(claim) == live


@pytest.mark.parametrize('text', ['', '{"tok', '[]', '\x00\x00'])
def test_a_corrupt_claim_is_as_none(tmp_path: Path, text: str) -> None:
  (tmp_path / 'claim.json').write_text(text)
  assert state(tmp_path) == 'todo'
  claim = Claim.acquire(tmp_path)
  assert json.loads((tmp_path / 'claim.json').read_text())['token'] == claim.token
