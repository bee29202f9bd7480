"""The loop: what it waits for, what it shares, what it writes. Kills are in test_resume.py."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.processes import assert_same_params, cell, read, rows, saved_steps
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

  def train_batch(self: data.Data, i: int, *part: int) -> np.ndarray:
    happened.append(f'batch {i}')
    return batch(self, i, *part)

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
  config = _config(**{'train.eval_every': 12, 'train.ffn_statistics': False})
  folder = tmp_path / 'run'
  done = _run(config, folder)
  steps = [(row['step'], *sorted(k for k in row if k != 'step')) for row in rows(folder)]
  trained = ('grad_norm', 'learning_rate', 'loss', 'skipped_steps', 'spikes')
  row = tuple(f'train/{name}' for name in trained)
  assert steps == [(10, *row), (12, 'eval/loss'), (20, *row), (20, 'eval/loss')]
  assert done.pop('seconds') > 0
  assert done.pop('tokens_per_s') > 0
  assert done == {
    'step': 20,
    'eval/loss': rows(folder)[-1]['eval/loss'],
    'skipped_steps': 0,
    'spikes': 0,
    'params': count.params(config),
    'tokens': 20 * 4 * 16,
    'data': data.load(config).fingerprint,
  }
  record = read(folder / 'provenance.json')
  assert record['code'] == provenance.code_digest(config)
  assert record['data']['fingerprint'] == done['data']
  assert record['versions']['jax'] == jax.__version__


def test_looking_closer_changes_nothing(tmp_path: Path) -> None:
  plain = _run(_config(**{'train.ffn_statistics': False}), tmp_path / 'plain')
  closer = _run(_config(**{'train.diagnose': 8}), tmp_path / 'closer')
  assert closer['eval/loss'] == plain['eval/loss']
  ours = [r for r in rows(tmp_path / 'closer') if not any(k[:4] in ('ffn/', 'diag') for k in r)]
  assert ours == rows(tmp_path / 'plain')
  assert_same_params(tmp_path / 'closer', tmp_path / 'plain')
  looked = [r for r in rows(tmp_path / 'closer') if 'diag/rms/logits' in r]
  assert [r['step'] for r in looked] == [8, 16]
  assert looked[0]['diag/grad_norm/ffn/up/0'] > 0
  (inside,) = (r for r in rows(tmp_path / 'closer') if 'ffn/zeros/0' in r)
  assert inside['step'] == 20
  # The norm over all parameters is the one that training reports.
  _run(_config(**{'train.diagnose': 20, 'train.log_every': 1}), tmp_path / 'each')
  row, parts = (
    next(r for r in rows(tmp_path / 'each') if r['step'] == 20 and key in r)
    for key in ('train/grad_norm', 'diag/rms/logits')
  )
  squares = [v**2 for k, v in parts.items() if k.startswith('diag/grad_norm/')]
  assert math.sqrt(sum(squares)) == pytest.approx(row['train/grad_norm'], rel=1e-5)


def test_a_loss_spike_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  beats = []

  class Watching(train.Control):
    def beat(self, **progress: object) -> None:
      beats.append(progress['spikes'])

  batch = data.Data.train_batch

  def strange(self: data.Data, i: int, *part: int) -> np.ndarray:
    return np.full_like(batch(self, i), 8) if i == 35 else batch(self, i)

  monkeypatch.setattr(data.Data, 'train_batch', strange)
  quick = {'train.steps': 50, 'optim.learning_rate': 0.03}
  done = _run(_config(**quick), tmp_path / 'run', Watching())
  found = {r['step']: r['train/spikes'] for r in rows(tmp_path / 'run') if 'train/spikes' in r}
  assert found == {10: 0.0, 20: 0.0, 30: 0.0, 40: 1.0, 50: 0.0}
  assert done['spikes'] == beats[-1] == 1
  assert 0 in beats


class _StopAt(train.Control):
  """Asks to stop once `step` has been shown."""

  def __init__(self, step: int):
    self.step = step

  def beat(self, **progress: object) -> None:
    self.stop = progress['step'] >= self.step


@pytest.mark.parametrize(
  'kind', [pytest.param('encoder', marks=pytest.mark.exhaustive), 'encoder_decoder']
)
def test_other_architectures_learn_and_continue_to_the_bit(kind: str, tmp_path: Path) -> None:
  """Stopped between rows and gone on with, a run ends as one that was left alone."""
  own = {'model.architecture': kind, 'model.dropout': 0.1, 'optim.learning_rate': 0.03}
  config = _config(**own, **{'train.steps': 40, 'train.log_every': 4, 'train.accumulate': 2})
  alone, folder = tmp_path / 'alone', tmp_path / 'run'
  undisturbed = _run(config, alone)
  with pytest.raises(train.Stopped, match='stopped at step 15 of 40'):
    _run(config, folder, _StopAt(15))
  done = _run(config, folder)
  assert rows(folder) == rows(alone)
  assert_same_params(folder, alone)
  assert done['eval/loss'] == undisturbed['eval/loss']
  losses = [row['train/loss'] for row in rows(alone) if 'train/loss' in row]
  assert losses[0] - losses[-1] > 0.2
  assert abs(losses[0] - math.log(32)) < 1.0  # a guess among 32 tokens, about
  _run(config.replace(seed=1), tmp_path / 'other')
  assert rows(tmp_path / 'other') != rows(alone)  # so the comparison can fail


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


def test_an_encoder_with_nothing_to_find_again(tmp_path: Path) -> None:
  hidden = {'model.architecture': 'encoder', 'loss.mask_rate': 0.001, 'train.steps': 1}
  with pytest.raises(UserError) as e:
    _run(_config(**hidden), tmp_path / 'run')
  assert str(e.value) == (
    '--loss.mask_rate=0.001: hides no token of the held-out text, so there is nothing to find '
    'again; ask for more, or for a larger --data.held_out'
  )


def test_an_unresolved_config_is_a_bug(tmp_path: Path) -> None:
  with pytest.raises(ValueError, match=r'train\.run takes a resolved config'):
    train.run(Config(), tmp_path)
