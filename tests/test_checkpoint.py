"""Which checkpoints survive, what they give back, and what becomes of damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.processes import cell, saved_steps
from transformer import checksums, state
from transformer.begin import begin
from transformer.checkpoint import Checkpoints, load_params
from transformer.config import Config
from transformer.decode import open_cell
from transformer.errors import UserError
from transformer.runs import Origin
from transformer.state import TrainState

HOST = {'sums': {'train/loss': [1 / 3, 2.0]}, 'data': 'abc', 'seconds': 1.5}


@pytest.fixture(scope='module')
def fresh() -> TrainState:
  """A state before step 0."""
  config = cell('fresh').config
  hypers = state.hyper_arrays(config)
  return jax.jit(lambda: state.create(config, np.uint32(0), hypers))()


def _at(fresh: TrainState, step: int) -> TrainState:
  """A state that differs at every step."""
  params = jax.tree.map(lambda x: x + step, fresh.params)
  return fresh.replace(step=np.int32(step), params=params)


def _save(folder: Path, fresh: TrainState, losses: dict[int, float | None], **keep: int) -> set:
  checkpoints = Checkpoints(folder, **keep)
  for step, loss in losses.items():
    metrics = None if loss is None else {'eval/loss': loss}
    checkpoints.save(_at(fresh, step), HOST, metrics)
  checkpoints.close()
  return saved_steps(folder.parent)


@pytest.mark.parametrize(
  'keep, survivors',
  [
    ({'keep_last': 1, 'keep_best': 1}, {20, 50}),  # the best at 20, the newest at 50
    ({'keep_last': 2, 'keep_best': 0}, {40, 50}),
    ({'keep_last': 1, 'keep_best': 2}, {20, 30, 50}),
  ],
)
def test_the_newest_and_the_best_survive(
  tmp_path: Path, fresh: TrainState, keep: dict, survivors: set
) -> None:
  losses = {10: 5.0, 20: 1.0, 30: 2.0, 40: 3.0, 50: None}
  assert _save(tmp_path / 'checkpoints', fresh, losses, **keep) == survivors


def test_a_state_comes_back_bit_for_bit(tmp_path: Path, fresh: TrainState) -> None:
  folder = tmp_path / 'checkpoints'
  _save(folder, fresh, {3: 2.0, 7: 1.0})
  checkpoints = Checkpoints(folder)
  restored, host = checkpoints.restore(fresh)
  checkpoints.close()
  assert host == HOST
  assert int(restored.step) == 7
  jax.tree.map(np.testing.assert_array_equal, restored, _at(fresh, 7))
  step, params = load_params(folder)
  assert step == 7
  jax.tree.map(np.testing.assert_array_equal, params, dict(_at(fresh, 7).params))


def test_params_of_a_step_and_of_no_step(tmp_path: Path, fresh: TrainState) -> None:
  folder = tmp_path / 'checkpoints'
  _save(folder, fresh, {3: 1.0, 7: 2.0})
  step, params = load_params(folder, 3)
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, params, dict(_at(fresh, 3).params))
  with pytest.raises(UserError) as e:
    load_params(folder, 4)
  assert str(e.value) == f'{folder}: no checkpoint of step 4 in it; there are those of 3, 7'
  with pytest.raises(UserError) as e:
    load_params(tmp_path / 'none')
  assert str(e.value) == f'{tmp_path / "none"}: no checkpoint in it'


def _damage(step_folder: Path, how: str = 'cut short') -> None:
  if how == 'without state':
    shutil.rmtree(step_folder / 'state')
  for path in (step_folder / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:5])


def test_params_of_another_config(tmp_path: Path, fresh: TrainState) -> None:
  """As where somebody edits config.json: however they are opened, they are refused."""
  _save(tmp_path / 'checkpoints', fresh, {7: 2.0})
  told = (tmp_path / 'config.json').write_text

  def opened(config: Config) -> tuple:
    told(json.dumps(config.to_json()))
    return open_cell(tmp_path)

  own = cell('own', **{'model.positions': 'learned'}).config
  deep = cell('deep', **{'model.num_layers': 3}).config
  what = f'{tmp_path}/checkpoints: checkpoint 7 is not of the config.json beside it: tensor'
  back = 'put back the config.json of that run'
  message = f'{what} layers/attention/key is (1, 16, 2, 8), by that file (3, 16, 2, 8); {back}'
  for way in (lambda: opened(deep), lambda: begin(deep, Origin(tmp_path, deep, 7), fresh)):
    with pytest.raises(UserError) as e:
      way()
    assert str(e.value) == message
  with pytest.raises(UserError) as e:
    opened(own)
  assert str(e.value) == f'{what} positions/table is absent, by that file (16, 16); {back}'
  assert opened(cell('fresh').config)[2] == 7


@pytest.mark.parametrize('how', ['cut short', 'without state'])
def test_params_that_are_not_whole(tmp_path: Path, fresh: TrainState, how: str) -> None:
  folder = tmp_path / 'checkpoints'
  _save(folder, fresh, {7: 2.0})
  _damage(folder / '7', how)
  with pytest.raises(UserError) as e:
    load_params(folder)
  take = 'take another step, or train that run anew'
  assert str(e.value).startswith(f'{folder}: checkpoint 7 is not whole (state/')
  assert str(e.value).endswith(f'); {take}')
  (folder / '7' / 'checksums.json').unlink()  # as if killed before they were kept
  with pytest.raises(UserError) as e:
    load_params(folder)
  assert str(e.value) == f'{folder}: checkpoint 7 is not whole; {take}'


@pytest.mark.parametrize('how', ['cut short', 'without state'])
def test_a_damaged_newest_one_gives_way_to_the_one_before(
  tmp_path: Path, fresh: TrainState, capsys: pytest.CaptureFixture, how: str
) -> None:
  folder = tmp_path / 'checkpoints'
  _save(folder, fresh, {3: 1.0, 7: 2.0})
  _damage(folder / '7', how)
  checkpoints = Checkpoints(folder)
  restored, host = checkpoints.restore(fresh)
  assert int(restored.step) == 3
  said = [x for x in capsys.readouterr().err.splitlines() if 'cannot be restored' in x]
  assert len(said) == 1
  assert said[0].startswith(f'{folder / "7"}: cannot be restored: ')
  checkpoints.save(_at(fresh, 7), host, {'eval/loss': 0.5})  # the same step again
  checkpoints.close()
  assert (folder / '7.damaged').is_dir()
  checkpoints = Checkpoints(folder)
  assert int(checkpoints.restore(fresh)[0].step) == 7
  checkpoints.close()


def _turn_a_bit(path: Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def test_a_single_bit_is_found_out_and_gives_way_to_the_one_before(
  tmp_path: Path, fresh: TrainState, capsys: pytest.CaptureFixture
) -> None:
  """Of the numbers themselves, which orbax would restore without a word."""
  folder = tmp_path / 'checkpoints'
  _save(folder, fresh, {3: 1.0, 7: 2.0})
  largest = max((folder / '7' / 'state').rglob('*'), key=lambda p: p.is_file() * p.stat().st_size)
  _turn_a_bit(largest)
  name = largest.relative_to(folder / '7')
  with pytest.raises(UserError) as e:
    load_params(folder)
  take = 'take another step, or train that run anew'
  assert str(e.value) == (
    f'{folder}: checkpoint 7 is not whole ({name} is not what was written); {take}'
  )
  checkpoints = Checkpoints(folder)
  assert int(checkpoints.restore(fresh)[0].step) == 3
  checkpoints.close()
  said = f'{folder / "7"}: cannot be restored: {name} is not what was written\n'
  assert said in capsys.readouterr().err


def test_checksums(tmp_path: Path) -> None:
  (tmp_path / 'inside').mkdir()
  for name in ('a', 'inside/b'):
    (tmp_path / name).write_text(name)
  assert checksums.damage(tmp_path) == ''  # as of a run that was killed before it kept any
  checksums.write(tmp_path)
  assert checksums.damage(tmp_path) == ''
  (tmp_path / 'new').touch()
  assert checksums.damage(tmp_path) == ''
  (tmp_path / 'inside/b').write_text('c')
  assert checksums.damage(tmp_path) == 'inside/b is not what was written'
  (tmp_path / 'a').unlink()
  assert checksums.damage(tmp_path) == 'a is missing'
  (tmp_path / 'checksums.json').write_text('{')
  assert checksums.damage(tmp_path) == 'checksums.json is damaged'


def test_nothing_but_damaged_ones_is_told(tmp_path: Path, fresh: TrainState) -> None:
  folder = tmp_path / 'checkpoints'
  _save(folder, fresh, {7: 2.0})
  _damage(folder / '7')
  checkpoints = Checkpoints(folder)
  with pytest.raises(UserError) as e:
    checkpoints.restore(fresh)
  checkpoints.close()
  message = str(e.value)
  assert message.startswith(f'{folder}: no checkpoint in it can be restored (')
  assert message.endswith('); delete it to start anew')
  assert '\n' not in message
  assert saved_steps(tmp_path) == {7}  # left as it was


def test_a_new_folder_has_none(tmp_path: Path, fresh: TrainState) -> None:
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  assert checkpoints.restore(fresh) is None
  checkpoints.close()


def test_what_may_pass_sets_no_checkpoint_aside(
  tmp_path: Path, fresh: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
  def read(*args: object) -> None:
    raise MemoryError

  _save(tmp_path, fresh, {1: None})
  checkpoints = Checkpoints(tmp_path)
  monkeypatch.setattr(Checkpoints, '_read', read)
  with pytest.raises(MemoryError):
    checkpoints.restore(fresh)
  monkeypatch.undo()
  assert checkpoints.restore(fresh) is not None
  checkpoints.close()
  assert not list(tmp_path.glob('*.damaged'))
