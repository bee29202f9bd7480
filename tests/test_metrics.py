"""metrics.jsonl: what a row holds, what a resumed run keeps, what damage is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from transformer.errors import UserError
from transformer.metrics import FILE, MetricsLog, read


def _log(folder: Path, step: int = 0, sums: dict | None = None, **options) -> MetricsLog:
  return MetricsLog(folder, step, sums or {}, every=2, tokens=64, **options)


def _metrics(loss: float, count: float, skipped: float = 0.0) -> dict:
  return {
    'train/loss': jnp.array([loss, count]),
    'train/skipped_steps': jnp.array([skipped, 1.0]),
    'bad': jnp.array([0.0, 1.0]),
  }


def _ignore(step: int, values: dict) -> None:
  pass


def test_a_mean_is_a_sum_over_a_count(tmp_path: Path) -> None:
  log = _log(tmp_path)
  log.add(1, _metrics(loss=30.0, count=10.0))
  log.add(2, _metrics(loss=2.0, count=2.0, skipped=1.0))
  log.add(3, _metrics(loss=7.0, count=7.0))
  seen = []
  log.flush(lambda step, values: seen.append((step, values['train/loss'][0])))
  log.close()
  (row,) = read(tmp_path / FILE)
  assert row['step'] == 2
  assert row['train/loss'] == 32.0 / 12.0  # not the mean of 3 and 1
  assert row['train/skipped_steps'] == 1.0
  assert row['perf/tokens_per_s'] == pytest.approx(64e3 / row['perf/step_ms'])
  assert 'bad' not in row
  assert seen == [(1, 30.0), (2, 2.0), (3, 7.0)]
  assert log.sums['train/loss'] == [7.0, 7.0]  # of step 3, which is not yet a row


def test_sums_of_a_checkpoint_enter_the_next_row(tmp_path: Path) -> None:
  log = _log(tmp_path, step=1, sums={'train/loss': [30.0, 10.0], 'train/skipped_steps': [0.0, 1.0]})
  log.add(2, _metrics(loss=2.0, count=2.0))
  log.flush(_ignore)
  log.close()
  assert read(tmp_path / FILE)[0]['train/loss'] == 32.0 / 12.0


def test_a_window_of_skipped_steps_has_no_loss(tmp_path: Path) -> None:
  log = _log(tmp_path)
  for step in (1, 2):
    log.add(step, _metrics(loss=0.0, count=0.0, skipped=1.0))
  log.flush(_ignore)
  log.close()
  (row,) = read(tmp_path / FILE)
  assert 'train/loss' not in row
  assert row['train/skipped_steps'] == 2.0


def test_a_row_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
  log = _log(tmp_path)
  log.write(5, {'eval/loss': 0.1 + 0.2})
  assert read(tmp_path / FILE) == [{'step': 5, 'eval/loss': 0.1 + 0.2}]
  log.close()


def test_rows_are_due_one_step_after_they_are_complete(tmp_path: Path) -> None:
  log = _log(tmp_path)
  due = []
  for step in range(1, 6):
    log.add(step, _metrics(1.0, 1.0))
    due.append(log.due(step))
    if due[-1]:
      log.flush(_ignore)
  log.close()
  assert due == [False, False, True, False, True]


def test_a_step_under_way_is_left_on_the_device(tmp_path: Path) -> None:
  log = _log(tmp_path)
  for step in (1, 2, 3):
    log.add(step, _metrics(1.0, 1.0))
  seen = []
  log.flush(lambda step, values: seen.append(step), before=3)
  assert seen == [1, 2]
  assert not log.sums
  log.flush(lambda step, values: seen.append(step))
  log.close()
  assert seen == [1, 2, 3]


def test_rows_past_the_checkpoint_and_half_a_row_are_dropped(tmp_path: Path) -> None:
  whole = [{'step': s, 'train/loss': 1 / s} for s in (2, 4, 6)]
  lines = [json.dumps(row) for row in whole]
  (tmp_path / FILE).write_text('\n'.join(lines) + '\n' + lines[0][:9])
  assert read(tmp_path / FILE) == whole
  log = _log(tmp_path, step=4)
  log.write(6, {'train/loss': 0.5})
  log.close()
  assert read(tmp_path / FILE) == [*whole[:2], {'step': 6, 'train/loss': 0.5}]
  assert [p.name for p in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize('damage', [b'{"step": 4, "tr', b'7', b'{"loss": 1.0}', b'\xff\x00{}'])
def test_damage_in_the_middle_is_named(tmp_path: Path, damage: bytes) -> None:
  path = tmp_path / FILE
  path.write_bytes(b'{"step": 2}\n' + damage + b'\n{"step": 6}\n')
  with pytest.raises(UserError) as e:
    _log(tmp_path, step=6)
  assert str(e.value) == f'{path}: line 2 is not a row of metrics; remove it or the cell'
  path.write_bytes(b'{"step": 2}\n' + damage)
  assert read(path) == [{'step': 2}]  # at the end it is what a kill leaves


def test_tensorboard_reads_what_was_written_without_tensorflow(tmp_path: Path) -> None:
  accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
  log = _log(tmp_path, tensorboard=True)
  log.write(10, {'train/loss': 2.5})
  log.write(20, {'train/loss': 1.5, 'eval/loss': 3.0})
  log.close()
  events = accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()

  def scalars(tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in events.Scalars(tag)]

  assert scalars('train/loss') == [(10, 2.5), (20, 1.5)]
  assert scalars('eval/loss') == [(20, 3.0)]
  assert 'tensorflow' not in sys.modules


def test_without_tensorboard_the_extra_is_named(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  for name in [m for m in sys.modules if m.partition('.')[0] == 'tensorboard']:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, 'tensorboard', None)
  with pytest.raises(UserError) as e:
    _log(tmp_path, tensorboard=True)
  assert str(e.value) == "--train.tensorboard: needs the extra: pip install 'isoffn[tensorboard]'"
