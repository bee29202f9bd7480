"""Boards: TensorBoard and Weights & Biases get every row; what is not installed is named."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from tests.processes import cell, rows
from transformer import boards, train
from transformer.config import Config, config_hash
from transformer.errors import UserError


def _config(**changes: object) -> Config:
  ours = {'train.steps': 20, 'train.log_every': 10, 'parallel.mesh': 'data:1'}
  return cell('any', **ours | changes).config


class _FakeWandb(types.ModuleType):
  """Notes what it is asked; `refuses` is raised by init."""

  def __init__(self):
    super().__init__('wandb')
    self.__spec__ = types.SimpleNamespace(name='wandb')  # what find_spec looks at
    self.begun: list[dict] = []
    self.logged: list[tuple[int, dict]] = []
    self.finished, self.refuses = 0, None

  def init(self, **given: object) -> _FakeWandb:
    if self.refuses:
      raise self.refuses
    self.begun.append(given)
    return self

  def log(self, values: dict, step: int) -> None:
    self.logged.append((step, values))

  def finish(self) -> None:
    self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> _FakeWandb:
  fake = _FakeWandb()
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  return fake


class _StopAt(train.Control):
  def beat(self, **progress: object) -> None:
    self.stop = progress['step'] >= 15


def test_wandb_gets_every_row_and_is_resumed(tmp_path: Path, wandb: _FakeWandb) -> None:
  config, folder = _config(**{'train.wandb': 'lab'}), tmp_path / 'exp' / 'cells' / 'relu-1234'
  folder.mkdir(parents=True)
  with pytest.raises(train.Stopped):
    train.run(config, folder, _StopAt())
  train.run(config, folder)
  assert wandb.finished == 2
  first, second = wandb.begun
  assert first == second  # the identifier above all
  assert first['id'].startswith(config_hash(config))
  assert {k: first[k] for k in ('project', 'group', 'name', 'resume', 'dir')} == {
    'project': 'lab',
    'group': 'exp',
    'name': 'relu-1234',
    'resume': 'allow',
    'dir': str(folder),
  }
  assert first['config']['ffn']['d_ff'] == config.ffn.d_ff
  shown = [
    {'step': step, **{k: v for k, v in values.items() if not k.startswith('perf/')}}
    for step, values in wandb.logged
  ]
  assert shown == rows(folder)
  assert config_hash(config) == config_hash(_config())  # watching changes no result


def test_a_run_computed_anew_is_another_one_on_wandb(tmp_path: Path, wandb: _FakeWandb) -> None:
  config = _config(**{'train.wandb': 'lab'})
  for name in 'ab':
    (tmp_path / name).mkdir()
    boards.attach(config, tmp_path / name, 0)
  one, other = (given['id'] for given in wandb.begun)
  assert one != other


def test_what_wandb_refuses_is_said_in_one_line(tmp_path: Path, wandb: _FakeWandb) -> None:
  wandb.refuses = RuntimeError('api_key not configured\n(no-tty)')
  with pytest.raises(UserError) as e:
    boards.attach(_config(**{'train.wandb': 'lab'}), tmp_path, 0)
  assert str(e.value) == (
    '--train.wandb=lab: cannot be started (api_key not configured (no-tty)); the variable '
    'WANDB_MODE=offline keeps the run on this machine'
  )


@pytest.mark.parametrize('name, value', [('tensorboard', True), ('wandb', 'lab')])
def test_what_is_not_installed_is_named(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
  find = boards.importlib.util.find_spec
  monkeypatch.setattr(
    boards.importlib.util, 'find_spec', lambda asked: None if asked == name else find(asked)
  )
  with pytest.raises(UserError) as e:
    boards.attach(_config(**{f'train.{name}': value}), tmp_path, 0)
  assert str(e.value) == f"--train.{name}: needs the extra: pip install 'isoffn[{name}]'"
  assert boards.attach(_config(), tmp_path, 0) == []


def test_tensorboard_gets_the_same_rows(tmp_path: Path) -> None:
  loader = pytest.importorskip('tensorboard.backend.event_processing.event_file_loader')
  train.run(_config(**{'train.tensorboard': True}), tmp_path)
  (path,) = (tmp_path / 'tensorboard').iterdir()
  events = [e for e in loader.LegacyEventFileLoader(str(path)).Load() if e.HasField('summary')]
  shown = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events]
  for (step, values), row in zip(shown, rows(tmp_path), strict=True):
    assert step == row.pop('step')
    assert {k: values[k] for k in row} == pytest.approx(row)  # which are kept in float32
