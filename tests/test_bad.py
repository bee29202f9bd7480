"""Bad steps: what is kept of them, and that repeating one names the tensor at fault."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from tests.processes import cell, saved_steps
from transformer import bad, data, runs, spec, train
from transformer.config import Config
from transformer.config.activations import Plain
from transformer.errors import UserError
from transformer.layers import ORDER
from transformer.replay import STAGES, Tensor, _in_order, replay

SLOT = 'ffn.activation'


@pytest.fixture(scope='module', autouse=True)
def _brittle() -> Iterator[None]:
  """An activation that gives infinity above 5, where inputs come as the weights grow."""
  declared, bodies = spec._DECLARED[SLOT], spec.bodies(SLOT)

  @spec.declare(SLOT, 'brittle')
  class Brittle(Plain):
    """x, or infinity above 5."""

  bodies['brittle'] = lambda x: jnp.where(x > 5.0, jnp.inf, x)
  yield
  del declared['brittle'], bodies['brittle']


def _config(**changes: object) -> Config:
  """With one device step 11 is the only bad one: an input of layer 1 is 5.2 then."""
  ours = {
    'ffn.activation': 'brittle',
    'model.num_layers': 2,
    'optim.learning_rate': 0.03,
    'train.steps': 40,
    'train.log_every': 6,
    'train.checkpoint_every': 7,
    'parallel.mesh': 'data:1',
  }
  return cell('any', **ours | changes).config


@pytest.fixture(scope='module')
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A run that got over its bad step."""
  folder = tmp_path_factory.mktemp('passed')
  assert train.run(_config(), folder)['skipped_steps'] == 1
  return folder


@pytest.fixture(scope='module')
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A run that diverged: with ten times the rate, all steps from 4 on are bad."""
  folder = tmp_path_factory.mktemp('ended')
  with pytest.raises(train.NonFinite, match='5 steps in a row'):
    train.run(_config(**{'optim.learning_rate': 0.3, 'train.max_bad_steps': 5}), folder)
  return folder


def _steps(folder: Path) -> list[str]:
  return sorted(p.name for p in (folder / 'bad').iterdir())


def _first(tensors: list[Tensor]) -> tuple[str, str, int | None]:
  t = next(t for t in tensors if not t.finite)
  return t.stage, t.name, t.layer


@pytest.mark.exhaustive
def test_what_is_kept_of_a_step_that_the_run_got_over(passed: Path) -> None:
  assert _steps(passed) == ['7', 'step-11.npz']
  assert saved_steps(passed) == {35, 40}  # 7 is gone, but for bad/
  batch = bad.kept_batch(passed, 11)
  np.testing.assert_array_equal(batch['tokens'], data.load(_config()).train_batch(10))
  np.testing.assert_array_equal(batch['rows'], np.arange(4))


def test_what_is_kept_of_a_run_that_ended_so(ended: Path) -> None:
  assert _steps(ended) == ['3', 'step-4.npz', 'step-5.npz', 'step-6.npz']  # the first three
  assert list(bad.states_before(ended, 4)) == [3]
  assert list(bad.states_before(ended, 3)) == []


@pytest.mark.exhaustive
def test_a_repeated_step_names_the_first_tensor(passed: Path, tmp_path: Path) -> None:
  walked = []
  tensors = replay(passed, _config(), 11, lambda *steps: walked.append(steps))
  assert walked == [(0, 3), (1, 3), (2, 3)]  # from step 7 to 10
  assert _first(tensors) == ('forward', 'ffn/hidden', 1)
  before = tensors[next(i for i, t in enumerate(tensors) if not t.finite) - 1]
  assert (before.name, before.layer) == ('ffn/up', 1)
  assert 5.0 < before.largest < 6.0
  bare = tmp_path / 'bare'  # the same from the start of the run, and from its data
  bare.mkdir()
  shutil.copy(passed / 'provenance.json', bare)
  again = replay(bare, _config(), 11, lambda *steps: None)
  assert [repr(t) for t in again] == [repr(t) for t in tensors]  # where NaN is NaN


def test_a_good_step_is_all_finite(passed: Path) -> None:
  tensors = replay(passed, _config(), 10, lambda *steps: None)
  assert all(t.finite for t in tensors)
  assert 0 < max(t.largest for t in tensors if t.name == 'ffn/up') < 5.0


def test_a_run_that_ended_needs_one_step_and_no_data(
  ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.delattr(data, 'load')
  tensors = replay(ended, _config(**{'optim.learning_rate': 0.3}), 4, lambda *steps: 1 / 0)
  stage, name, _ = _first(tensors)
  assert (stage, name) == ('forward', 'ffn/hidden')


def test_tensors_come_in_the_order_they_are_computed(passed: Path) -> None:
  tensors = replay(passed, _config(), 8, lambda *steps: None)
  stages = [t.stage for t in tensors]
  assert list(dict.fromkeys(stages)) == list(STAGES)
  forward = [(t.layer, t.name.rpartition('/')[2]) for t in tensors if t.stage == 'forward']
  assert forward[0] == (None, 'embedding')
  assert forward[-2:] == [(None, 'final_normed'), (None, 'logits')]
  for layer in (0, 1):
    names = [name for at, name in forward if at == layer]
    assert names == sorted(names, key=ORDER.index)
    assert {'query', 'scores', 'hidden', 'down', 'stream_ffn'} <= set(names)
  backward = [(t.layer, t.name) for t in tensors if t.stage == 'gradient']
  assert backward[0] == (None, 'final_norm/scale')
  assert backward[-1] == (None, 'embed/table')
  assert backward.index((1, 'attention_norm/scale')) < backward.index((0, 'ffn/down'))
  assert backward.index((0, 'ffn/down')) < backward.index((0, 'ffn/up'))


def test_a_run_whose_data_have_changed_is_not_repeated(passed: Path, tmp_path: Path) -> None:
  other = _config(**{'data.source': 'synthetic(rows=65)'})
  with pytest.raises(UserError) as e:
    replay(passed, other, 10, lambda *steps: None)
  assert str(e.value) == (
    f'--data.source=synthetic(rows=65): is not what {passed} was trained on, so its steps cannot '
    'be repeated'
  )
  assert runs.provenance(tmp_path) == {}


def test_a_shared_gradient_is_complete_after_all_layers():
  """The FFN that all layers share comes after the first layer's, as backward goes."""
  config = battery.tiny(**{'ffn.shared': True, 'model.num_layers': 2})
  size = {name: np.float32(1) for name in ('largest', 'sum_abs', 'sum_squares', 'count', 'finite')}
  stacked = {name: np.ones(2, np.float32) for name in size}
  tensors = {'ffn/up': size, 'embed/table': size, 'final_norm/scale': size}
  seen = {stage: {} for stage in STAGES}
  seen['gradient'] = tensors | {'attention/query': stacked}
  order = [(t.name, t.layer) for t in _in_order(config, seen)]
  layers = [('attention/query', 1), ('attention/query', 0)]
  assert order == [('final_norm/scale', None), *layers, ('ffn/up', None), ('embed/table', None)]


class _Evil:
  def __init__(self, path: Path):
    self.path = path

  def __reduce__(self) -> tuple:
    return Path.touch, (self.path,)


def test_a_batch_that_would_run_code(tmp_path: Path) -> None:
  path, trap = bad.batch_file(tmp_path, 3), tmp_path / 'was_here'
  path.parent.mkdir()
  np.savez(path, tokens=np.array([_Evil(trap)], object))
  with pytest.raises(UserError) as e:
    bad.kept_batch(tmp_path, 3)
  assert str(e.value) == f'{path}: is not a batch as it was kept; delete it'
  assert not trap.exists()
  np.load(path, allow_pickle=True)['tokens']  # so the trap works
  assert trap.exists()
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(UserError):
    bad.kept_batch(tmp_path, 3)
  assert bad.kept_batch(tmp_path, 4) is None
