"""What is handed to a cluster: each cell once, whoever submits, and how a search waits for it."""

from __future__ import annotations

import threading
from pathlib import Path

import fake_engine
import pytest
from launch_fakes import make_cells

from launch import engines, folder, records, remote
from launch.cells import Cell, Claim, write_json
from launch.local import Outcome
from transformer.config import LaunchConfig
from transformer.errors import UserError


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch, workdir: Path):
  """`slurm` is a cluster that runs nothing."""
  monkeypatch.setitem(engines._MODULES, 'slurm', 'fake_engine')
  for known in (fake_engine.SUBMITTED, fake_engine.CANCELLED, fake_engine.NOW):
    known.clear()
  workdir.mkdir()
  return fake_engine


def _names(cells: list[Cell]) -> list[str]:
  return [c.folder_name for c in cells]


def test_an_engine_that_is_none_is_refused() -> None:
  with pytest.raises(UserError, match='--on=slum: no such engine; did you mean slurm'):
    engines.engine('slum')


def test_each_cell_is_submitted_once_until_the_cluster_lets_go_of_it(
  workdir: Path, cluster
) -> None:
  cells = make_cells('a', 'b', 'c')
  cells[0].folder(workdir).mkdir(parents=True)
  Claim.acquire(cells[0].folder(workdir)).commit({'eval/loss': 3.0})
  assert engines.submit('slurm', cells, workdir) == 2
  assert cluster.SUBMITTED[0].cells == tuple(_names(cells[1:]))
  assert (cells[1].folder(workdir) / 'config.json').exists()
  assert engines.submit('slurm', cells, workdir) == 0  # the same command again
  cluster.NOW[cells[1].folder_name] = 'gone'
  assert engines.submit('slurm', cells, workdir) == 1
  assert cluster.SUBMITTED[1].cells == (cells[1].folder_name,)
  assert engines.states(workdir) == {
    cells[1].folder_name: 'gone',
    cells[2].folder_name: 'waiting',
  }


def test_what_cannot_be_cancelled_leaves_the_others_cancelled(
  workdir: Path, cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
  a, b = make_cells('a', 'b')
  for cell in (a, b):
    engines.submit('slurm', [cell], workdir)

  def cancel(record: dict) -> None:
    if record['names'] == [a.folder_name]:
      raise UserError('no answer')
    cluster.CANCELLED.append(record)

  monkeypatch.setattr(cluster, 'cancel', cancel)
  with pytest.raises(UserError, match='no answer'):
    engines.cancel(workdir)
  assert [record['names'] for record in cluster.CANCELLED] == [[b.folder_name]]
  assert capsys.readouterr().out == '1 cells submitted to slurm are cancelled\n'


def test_what_was_cancelled_may_be_submitted_while_it_still_saves_itself(
  workdir: Path, cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
  cells = make_cells('a')
  monkeypatch.setattr(cluster, 'cancel', lambda record: None)  # the cluster calls it running still
  assert engines.submit('slurm', cells, workdir) == 1
  assert engines.submit('slurm', cells, workdir) == 0
  engines.cancel(workdir)
  assert engines.submit('slurm', cells, workdir) == 1


def test_two_who_submit_at_once_submit_each_cell_once(workdir: Path, cluster) -> None:
  cells = make_cells('a', 'b')
  counts: list[int] = []
  both = [
    threading.Thread(target=lambda: counts.append(engines.submit('slurm', cells, workdir)))
    for _ in range(4)
  ]
  for thread in both:
    thread.start()
  for thread in both:
    thread.join()
  assert sorted(counts) == [0, 0, 0, 2]
  assert len(cluster.SUBMITTED) == 1


def test_a_launcher_killed_before_it_noted_what_it_submitted_submits_again(
  workdir: Path, cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
  """The cells are in the queue twice then; their claims see to it that each runs once."""
  cells = make_cells('a')
  with monkeypatch.context() as patch:
    patch.setattr(records, 'write', lambda *told: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      engines.submit('slurm', cells, workdir)
  assert engines.submit('slurm', cells, workdir) == 1
  first = Claim.acquire(cells[0].folder(workdir), 'job1')
  assert Claim.acquire(cells[0].folder(workdir), 'job2') is None
  first.commit({'eval/loss': 3.0})


def test_what_is_over_is_asked_no_more_and_cancelling_reaches_the_rest(
  workdir: Path, cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
  a, b = make_cells('a', 'b')
  engines.submit('slurm', [a], workdir)
  cluster.NOW[a.folder_name] = 'gone'
  engines.submit('slurm', [b], workdir)
  assert [r['over'] for r in records.read(workdir) if 'over' in r] == [True]
  asked = []
  monkeypatch.setattr(cluster, 'states', lambda r: asked.append(r) or {b.folder_name: 'running'})
  assert engines.states(workdir) == {a.folder_name: 'gone', b.folder_name: 'running'}
  assert [r['names'] for r in asked] == [[b.folder_name]]
  assert engines.cancel(workdir) == ['1 cells submitted to slurm are cancelled']
  assert [r['names'] for r in cluster.CANCELLED] == [[b.folder_name]]
  assert engines.cancel(workdir) == []


def test_what_the_cluster_says_tells_lost_from_running(workdir: Path) -> None:
  (cell,) = make_cells('a')
  write_json(workdir / 'experiment.json', {'cells': [{'name': 'a', 'folder': cell.folder_name}]})
  cell.folder(workdir).mkdir(parents=True)
  Claim.acquire(cell.folder(workdir))
  path = cell.folder(workdir) / 'claim.json'
  write_json(path, {**folder.read_json(path), 'host': 'node7'})

  def seen(engine: str) -> str:
    return folder.read(workdir, engine={cell.folder_name: engine})[0].state

  assert [seen(engine) for engine in ('running', 'gone')] == ['running', 'lost']
  Claim.take_over(cell.folder(workdir), folder.read_json(path), 0).fail('preempted', 'm')
  assert [seen(engine) for engine in ('waiting', 'gone')] == ['waiting', 'failed']


class Two:
  """Makes two cells, one after the other has ended."""

  total = 2

  def __init__(self, cells: list[Cell]):
    self.left = list(cells)

  def look(self, running: dict, free: int) -> list[Cell]:
    return [self.left.pop(0)] if self.left and free and not running else []


def _search(workdir: Path, monkeypatch, cells: list[Cell], tick, workers: int = 1) -> Outcome:
  monkeypatch.setattr(remote, '_EVERY', 0.0)
  monkeypatch.setattr(remote, '_ENGINE_EVERY', 0.0)
  monkeypatch.setattr(remote.time, 'sleep', lambda seconds: tick())
  return remote.run('slurm', workdir, LaunchConfig(workers=workers, retries=1), Two(cells))


def test_a_search_submits_trials_as_they_come(
  workdir: Path, cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
  cells = make_cells('a', 'b')

  def tick() -> None:
    (name,) = cluster.SUBMITTED[-1].cells
    Claim.acquire(workdir / 'cells' / name).commit({'eval/loss': 3.0})

  outcome = _search(workdir, monkeypatch, cells, tick)
  assert [job.cells for job in cluster.SUBMITTED] == [(name,) for name in _names(cells)]
  assert (outcome.done, outcome.interrupted) == (cells, False)


def test_a_trial_that_the_cluster_dropped_is_submitted_again_and_then_given_up(
  workdir: Path, cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
  cells = make_cells('a')
  outcome = _search(
    workdir, monkeypatch, cells, lambda: cluster.NOW.update({cells[0].folder_name: 'gone'})
  )
  assert (len(cluster.SUBMITTED), outcome.failed) == (2, cells)


def test_a_search_on_a_cluster_says_how_many_at_a_time(workdir: Path) -> None:
  with pytest.raises(UserError, match='say how many trials at a time are to run on slurm'):
    remote.run('slurm', workdir, LaunchConfig(), Two([]))
