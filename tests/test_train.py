"""The loop: what it waits for, what it shares, what it writes. Kills are in test_resume.py."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.processes import cell, read, rows, saved_steps
from transformer import count, data, provenance, train
from transformer.config import Config
from transformer.errors import UserError

array = importlib.import_module('jax._src.array')


def _config(**changes: object) -> Config:
  """A run on one device of however many there are; all share one program unless told otherwise."""
  ours = {'train.steps': 20, 'train.log_every': 10, 'parallel.mesh': 'data:1'}
  return cell('any', **ours | changes).config


def _run(config: Config, folder: Path, control: train.Control | None = None) -> dict:
  folder.mkdir(exist_ok=True)
  return train.run(config, folder, control)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """What happened, in order: 'batch i' as batch i is asked for, 'read' as a value is waited for."""
  happened: list[str] = []
  value, batch = array.ArrayImpl._value, data.Data.train_batch

  def read_value(self: jax.Array) -> np.ndarray:
    happened.append('read')
    return value.fget(self)

  def train_batch(self: data.Data, i: int) -> np.ndarray:
    happened.append(f'batch {i}')
    return batch(self, i)

  monkeypatch.setattr(array.ArrayImpl, '_value', property(read_value))
  monkeypatch.setattr(data.Data, 'train_batch', train_batch)
  return happened


def test_the_loop_waits_for_the_device_only_where_rows_are_due(
  tmp_path: Path, reads: list[str]
) -> None:
  assert float(jax.numpy.ones(())) == 1.0
  assert reads.pop() == 'read'  # the counter counts
  _run(_config(**{'train.steps': 30}), tmp_path / 'run')
  batches = [x for x in reads if x != 'read']
  assert batches == [f'batch {i}' for i in range(30)]
  waited, current = set(), -1
  for x in reads[reads.index('batch 0') :]:
    if x == 'read':
      waited.add(current)
    else:
      current = int(x.split()[1])
  # Rows of steps 10 and 20 once batches 10 and 20 are on their way; all else after the last.
  assert waited == {10, 20, 29}


def test_cells_that_differ_in_numbers_share_one_program(tmp_path: Path) -> None:
  one = _config()
  other = _config(
    **{
      'seed': 5,
      'optim.learning_rate': 0.003,
      'optim.weight_decay': 0.3,
      'optim.name': 'adamw(b2=0.9)',
      'optim.schedule': 'cosine(warmup=0.5)',
      'train.steps': 12,
      'train.keep_best': 0,
    }
  )
  compiled: list[str] = []

  def note(event: str, seconds: float, **more: object) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(event)

  first = _run(one, tmp_path / 'one')
  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    program = train.program(one)
    second = _run(other, tmp_path / 'other')
    assert train.program(other) is program
    assert not compiled
    wide = _config(**{'ffn.d_ff': 24, 'train.steps': 1})
    _run(wide, tmp_path / 'wide')
    assert compiled  # so the listener hears
    assert train.program(wide) is not program
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
  assert first['eval/loss'] != second['eval/loss']
  # That `other` is what it would be alone: test_resume.py.


def test_what_a_run_writes_and_returns(tmp_path: Path) -> None:
  config = _config(**{'train.eval_every': 12})
  folder = tmp_path / 'run'
  done = _run(config, folder)
  steps = [(row['step'], *sorted(k for k in row if k != 'step')) for row in rows(folder)]
  trained = ('grad_norm', 'learning_rate', 'loss', 'skipped_steps')
  row = tuple(f'train/{name}' for name in trained)
  assert steps == [(10, *row), (12, 'eval/loss'), (20, *row), (20, 'eval/loss')]
  assert done.pop('seconds') > 0
  assert done.pop('tokens_per_s') > 0
  assert done == {
    'step': 20,
    'eval/loss': rows(folder)[-1]['eval/loss'],
    'skipped_steps': 0,
    'params': count.params(config),
    'tokens': 20 * 4 * 16,
    'data': data.load(config).fingerprint,
  }
  record = read(folder / 'provenance.json')
  assert record['code'] == provenance.code_digest()
  assert record['data']['fingerprint'] == done['data']
  assert record['versions']['jax'] == jax.__version__


def test_tensorboard_gets_the_same_rows(tmp_path: Path) -> None:
  loader = pytest.importorskip('tensorboard.backend.event_processing.event_file_loader')
  _run(_config(**{'train.tensorboard': True}), tmp_path / 'run')
  (path,) = (tmp_path / 'run' / 'tensorboard').iterdir()
  events = [e for e in loader.LegacyEventFileLoader(str(path)).Load() if e.HasField('summary')]
  shown = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events]
  for (step, values), row in zip(shown, rows(tmp_path / 'run'), strict=True):
    assert step == row.pop('step')
    assert {k: values[k] for k in row} == pytest.approx(row)  # which are kept in float32


class _StopAt(train.Control):
  """Asks to stop once `step` has been shown."""

  def __init__(self, step: int):
    self.step = step

  def beat(self, **progress: object) -> None:
    self.stop = progress['step'] >= self.step


def test_a_run_on_other_data_is_not_continued(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  config, folder = _config(), tmp_path / 'run'
  with pytest.raises(train.Stopped, match='stopped at step 11 of 20'):
    _run(config, folder, _StopAt(11))
  assert saved_steps(folder) == {11}
  before, record = rows(folder), (folder / 'provenance.json').read_text()
  load = data.load
  monkeypatch.setattr(
    data, 'load', lambda config: dataclasses.replace(load(config), fingerprint='f' * 16)
  )
  with pytest.raises(UserError) as e:
    _run(config, folder)
  was = load(config).fingerprint[:8]
  assert str(e.value) == (
    f'{folder}: was trained on other data ({was}, now ffffffff); '
    'choose another --workdir or --recompute'
  )
  assert (rows(folder), (folder / 'provenance.json').read_text()) == (before, record)


def test_variants_of_one_seed_see_the_same_batches() -> None:
  def batches(**changes: object) -> list[np.ndarray]:
    opened = data.load(_config(**changes))
    return [opened.train_batch(i) for i in range(20)]

  relu = batches(**{'ffn.activation': 'relu', 'seed': 3})
  swiglu = batches(**{'ffn.activation': 'swiglu', 'seed': 3, 'ffn.d_ff': 40, 'model.d_model': 32})
  other = batches(**{'ffn.activation': 'relu', 'seed': 4})
  np.testing.assert_array_equal(relu, swiglu)
  assert not any(np.array_equal(a, b) for a, b in zip(relu, other, strict=True))


def test_an_unresolved_config_is_a_bug(tmp_path: Path) -> None:
  with pytest.raises(ValueError, match=r'train\.run takes a resolved config'):
    train.run(Config(), tmp_path)
