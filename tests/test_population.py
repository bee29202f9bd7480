"""Runs trained as one program are what each is alone, wherever they stand and however they end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import battery
from tests.processes import cell, read, rows
from transformer import population, train
from transformer.checkpoint import load_params
from transformer.config import Config
from transformer.errors import UserError

COMMON = {'parallel.mesh': 'data:1', 'train.steps': 12, 'train.log_every': 4, 'optim.ema': 0.9}
OWN = (  # seed, rate and length differ; the second is ahead of the others when it ends
  {'seed': 0},
  {'seed': 1, 'optim.learning_rate': 0.02, 'train.steps': 8, 'train.eval_every': 3},
  {'seed': 2, 'train.checkpoint_every': 5},
)


def config(own: dict) -> Config:
  return cell('any', **COMMON | own).config


class StopAfter(train.Control):
  """Asks a run to stop once it has come to a step."""

  def __init__(self, step: int):
    self._step = step

  def beat(self, *, step: int, **progress: object) -> None:
    self.stop = step >= self._step


def together(folder: Path, owns: tuple[dict, ...] = OWN, controls: tuple = ()) -> list:
  given = []
  for i, own in enumerate(owns):
    (folder / str(i)).mkdir(parents=True, exist_ok=True)
    given.append((config(own), folder / str(i), controls[i] if controls else train.Control()))
  return population.run(given)


def same_numbers(one: Path, other: Path) -> None:
  """Their rows, but for times, and the parameters that they end with."""
  mine, theirs = rows(one), rows(other)
  assert [row.keys() for row in mine] == [row.keys() for row in theirs]
  for ours, alone in zip(mine, theirs, strict=True):
    for name in ours:
      assert ours[name] == pytest.approx(alone[name], rel=2e-4, abs=1e-6), name
  (step, mine), (theirs_at, theirs) = (load_params(f / 'checkpoints') for f in (one, other))
  assert step == theirs_at
  assert battery.largest_difference(mine, theirs) < 2e-5


@pytest.fixture(scope='module')
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Each of OWN by itself."""
  folder = tmp_path_factory.mktemp('alone')
  for i, own in enumerate(OWN):
    (folder / str(i)).mkdir()
    train.run(config(own), folder / str(i))
  return folder


def test_each_is_what_it_is_alone(alone: Path, tmp_path: Path) -> None:
  ended = together(tmp_path)
  assert [done['step'] for done in ended] == [12, 8, 12]
  for i in range(3):
    same_numbers(tmp_path / str(i), alone / str(i))
  losses = {round(done['eval/loss'], 4) for done in ended}
  assert len(losses) == 3  # so that one taken for another would be seen


def test_stopped_at_different_steps_they_go_on_together(alone: Path, tmp_path: Path) -> None:
  stops = StopAfter(4), StopAfter(99), StopAfter(7)
  first = together(tmp_path, controls=stops)
  assert [type(end).__name__ for end in first] == ['Stopped', 'dict', 'Stopped']
  assert [str(end) for end in (first[0], first[2])] == [
    'stopped at step 4 of 12',
    'stopped at step 7 of 12',
  ]
  second = together(tmp_path)
  assert [done['step'] for done in second] == [12, 8, 12]
  for i in range(3):
    same_numbers(tmp_path / str(i), alone / str(i))


def test_one_that_diverges_leaves_the_others(tmp_path: Path) -> None:
  # Without eps, Adam divides 0 by 0 where a unit is off for all four tokens.
  few = {'data.seq_len': 4, 'data.batch_size': 1, 'ffn.activation': 'relu'}
  wild = few | {'seed': 1, 'optim.name': 'adamw(eps=0.0)', 'train.max_bad_steps': 3}
  ended = together(tmp_path, (few, wild))
  assert isinstance(ended[1], train.NonFinite)
  assert (ended[0]['step'], ended[0]['skipped_steps']) == (12, 0)


def test_it_is_for_one_device() -> None:
  several = cell('any', **COMMON | {'parallel.mesh': 'data:2', 'launch.together': 2}).config
  with pytest.raises(UserError, match='is for one device a process; 2 present'):
    population.Population(several, 2)


def test_a_run_folder_says_who_was_beside(tmp_path: Path) -> None:
  from launch import local

  cells = [cell('a', **COMMON | {'launch.together': 2, 'seed': seed}) for seed in (0, 1)]
  outcome = local.run(tmp_path, cells, 1)
  assert [c.name for c in outcome.done] == [c.name for c in cells]
  told = [read(c.folder(tmp_path) / 'done.json') for c in cells]
  assert [(done['step'], done['together']) for done in told] == [(12, 2)] * 2
  logs = [(c.folder(tmp_path) / 'log.txt').read_text() for c in cells]
  assert not any('Traceback' in log for log in logs)
