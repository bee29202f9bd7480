"""What a folder tells of its cells, how it is shown, and how one goes on with it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from launch_fakes import make_cells
from rich.console import Console

from launch import folder, retry, status
from launch.cells import Cell, Claim, read_json, write_config, write_json
from launch.lease import Leases
from transformer.errors import UserError

NAMES = ('done', 'running', 'gone', 'failed', 'new', 'left', 'pruned', 'theirs')


@pytest.fixture
def cells(workdir: Path) -> list[Cell]:
  """One in each state."""
  made = make_cells(*NAMES)
  for cell in made:
    write_config(cell, workdir)
  folders = {cell.name: cell.folder(workdir) for cell in made}
  Claim.acquire(folders['done']).commit(
    {'eval/loss': 3.25, 'step': 10, 'tokens_per_s': 1e4, 'seconds': 60.0}
  )
  for name in ('running', 'gone', 'theirs'):
    Claim.acquire(folders[name])
    beat = {'count': 1, 'step': 4, 'steps': 10, 'loss': 3.5, 'phase': 'training'}
    write_json(folders[name] / 'heartbeat.json', beat)
  for name, change in (('gone', {'start': '1'}), ('theirs', {'host': 'node7', 'pid': 42})):
    path = folders[name] / 'claim.json'
    write_json(path, {**read_json(path), **change})
  Claim.acquire(folders['failed']).fail('out of memory', 'too wide', 'the log')
  write_json(folders['left'] / 'heartbeat.json', {'count': 9, 'step': 7, 'steps': 10})
  (folders['left'] / 'checkpoints' / '6').mkdir(parents=True)
  write_json(folders['pruned'] / 'pruned.json', {'step': 2, 'loss': 9.0})
  listed = [
    {'name': c.name, 'variant': c.name, 'seed': c.seed, 'folder': c.folder_name} for c in made
  ]
  write_json(workdir / 'experiment.json', {'cells': listed, 'command': 'python -m launch.sweep'})
  return made


def _states(workdir: Path, **how) -> dict[str, str]:
  return {cell.name: cell.state for cell in folder.read(workdir, **how)}


def test_a_folder_tells_what_has_become_of_each_cell(workdir: Path, cells: list[Cell]) -> None:
  assert _states(workdir) == {
    'done': 'done',
    'running': 'running',
    'gone': 'lost',
    'failed': 'failed',
    'new': 'waiting',
    'left': 'waiting',
    'pruned': 'pruned',
    'theirs': 'running',
  }
  found = {cell.name: cell for cell in folder.read(workdir)}
  assert (found['done'].loss, found['done'].step, found['done'].seconds) == (3.25, 10, 60.0)
  assert (found['running'].step, found['running'].phase) == (4, 'training')
  assert found['theirs'].where == 'process 42 on node7'
  assert (found['failed'].cause, found['failed'].log_tail) == ('out of memory', 'the log')
  assert found['left'].step == 6  # what it saved, not what it had done


def test_one_who_looks_again_sees_a_heart_that_stands_still(
  workdir: Path, cells: list[Cell]
) -> None:
  now = [0.0]
  leases = Leases(8, lambda: now[0])
  seen = []
  for _ in range(4):
    seen.append(_states(workdir, leases=leases)['theirs'])
    now[0] += 4
  assert seen == ['running', 'running', 'lost', 'lost']


def test_a_folder_of_no_experiment_is_named(tmp_path: Path) -> None:
  with pytest.raises(UserError, match=r'experiment\.json: no such file; give the folder of an exp'):
    folder.read(tmp_path)


def test_status_shows_counts_progress_and_causes(workdir: Path, cells: list[Cell]) -> None:
  console = Console(file=io.StringIO(), width=300)
  console.print(status.table(workdir, folder.read(workdir)))
  said = console.file.getvalue()
  assert '8 cells: 1 done, 1 pruned, 2 running, 1 lost, 2 waiting, 1 failed; about ' in said
  assert 'failed: out of memory (1×): too wide' in said
  line = next(line for line in said.splitlines() if line.startswith('theirs'))
  assert ' '.join(line.split()) == 'theirs 4/10 loss 3.5000 training process 42 on node7'


def test_time_left_is_told_by_those_that_are_done(workdir: Path, cells: list[Cell]) -> None:
  found = folder.read(workdir)
  # open are 0.6 of two running cells, and three whole ones, at 60 s each and two at a time
  assert status.left(found) == pytest.approx(60 * (0.6 + 0.6 + 3) / 2)
  assert status.left([c for c in found if c.state == 'done']) == 0.0
  assert status.left([c for c in found if c.state != 'done']) is None


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch, workdir: Path):
  """launch.retry with flags; returns the names of the cells it would run."""

  def call(**given: object) -> list[str]:
    run: list[str] = []
    monkeypatch.setattr(retry, '_run', lambda w, cells, of: run.extend(c.name for c in cells) or 0)
    told = dict(workdir=str(workdir), failed=False, cause='', on='') | given
    monkeypatch.setattr(retry, 'FLAGS', type('Flags', (), told))
    monkeypatch.setattr(retry.flags, 'given', dict)
    assert retry.main() == 0
    return run

  return call


def test_retry_goes_on_with_what_is_open_and_with_the_failures_asked_for(
  workdir: Path, cells: list[Cell], again
) -> None:
  assert again() == ['gone', 'new', 'left']
  assert again(failed=True) == ['gone', 'failed', 'new', 'left']
  assert again(cause='oom') == ['gone', 'failed', 'new', 'left']
  assert again(failed=True, cause='died,bug') == ['gone', 'new', 'left']
  with pytest.raises(UserError, match="--cause=oum: no cause 'oum'; did you mean oom"):
    again(cause='oum')


def test_retry_refuses_cells_of_other_code_and_searches(
  workdir: Path, cells: list[Cell], again
) -> None:
  left = cells[5].folder(workdir)
  write_json(left / 'provenance.json', {'code': 'other'})
  with pytest.raises(UserError, match='1 of 3 cells were begun by other code than now; run its'):
    again()
  asked = json.loads((workdir / 'experiment.json').read_text())
  write_json(workdir / 'experiment.json', {**asked, 'search': {'space': 'x'}})
  with pytest.raises(UserError, match=r'a search goes on by its command: python -m launch\.sweep'):
    again()
