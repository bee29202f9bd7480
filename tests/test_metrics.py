"""metrics.jsonl: what a row holds, what a resumed run keeps, what damage is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from transformer import metrics
from transformer.boards import TensorBoard
from transformer.errors import UserError
from transformer.metrics import FILE, MetricsLog, is_spike, read, spread


def _log(folder: Path, step: int = 0, saved: dict | None = None, **options) -> MetricsLog:
  return MetricsLog(folder, step, saved or {}, **dict(every=2, tokens=64) | options)


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
  assert log.state['sums']['train/loss'] == [7.0, 7.0]  # of step 3, which is not yet a row


def test_sums_of_a_checkpoint_enter_the_next_row(tmp_path: Path) -> None:
  sums = {'train/loss': [30.0, 10.0], 'train/skipped_steps': [0.0, 1.0], 'train/spikes': [2.0, 1.0]}
  log = _log(tmp_path, step=1, saved={'sums': sums})
  log.add(2, _metrics(loss=2.0, count=2.0))
  log.flush(_ignore)
  log.close()
  (row,) = read(tmp_path / FILE)
  assert (row['train/loss'], row['train/spikes']) == (32.0 / 12.0, 2.0)


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
  assert not log.state['sums']
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
  log = _log(tmp_path, boards=[TensorBoard(tmp_path / 'tensorboard', 0)])
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


def test_a_row_can_have_one_behind_it(tmp_path: Path) -> None:
  log = _log(tmp_path)
  more = {'diag/rms/up': jnp.array([1.0, jnp.nan, 3.0]), 'diag/total': jnp.array(4.0)}
  log.add(2, _metrics(1.0, 1.0), more)
  log.flush(_ignore)
  log.close()
  row, behind = read(tmp_path / FILE)
  assert row['train/loss'] == 1.0
  assert behind == {'step': 2, 'diag/rms/up/0': 1.0, 'diag/rms/up/2': 3.0, 'diag/total': 4.0}
  assert spread({'x': jnp.array(jnp.inf)}) == {}


# --- Spikes.

_CALM = [3.0 + 0.01 * (i % 5) for i in range(30)]  # median 3.02, median change 0.01


def test_a_spike_stands_out_from_what_is_usual() -> None:
  """Here six deviations are 6 · 1.4826 / √2 · 0.01 = 0.063, so the floor of 0.1 decides."""
  assert not is_spike(3.11, _CALM)
  assert is_spike(3.13, _CALM)
  assert not is_spike(9.0, _CALM[:19])  # too few to know
  rough = [3.0 + 0.1 * (i % 5) for i in range(30)]  # median 3.2, six deviations 0.629
  assert not is_spike(3.82, rough)
  assert is_spike(3.84, rough)
  assert not is_spike(1.0, rough)
  falling = [x - 0.2 * i for i, x in enumerate(rough)]  # by 5.8 in all: median 0.3, changes of 0.1
  assert is_spike(1.5, falling)


def test_spikes_are_counted_in_rows_and_in_all(tmp_path: Path) -> None:
  log = _log(tmp_path, every=10)
  losses = [*_CALM, 5.0, 3.0, 7.0, *_CALM[:7]]
  for step, loss in enumerate(losses, 1):
    skipped = step == 35  # which has no loss at all
    log.add(step, _metrics(0.0 if skipped else loss, float(not skipped), float(skipped)))
    if log.due(step):
      log.flush(_ignore)
  log.flush(_ignore)
  log.close()
  assert [row['train/spikes'] for row in read(tmp_path / FILE)] == [0.0, 0.0, 0.0, 2.0]
  assert log.spikes == 2
  assert len(log.state['losses']) == 39


def test_a_resumed_log_judges_by_the_losses_before(tmp_path: Path) -> None:
  def run(log: MetricsLog, steps: range) -> None:
    for step in steps:
      log.add(step, _metrics([*_CALM, 5.0, 3.0][step - 1], 1.0))
    log.flush(_ignore)
    log.close()

  (tmp_path / 'whole').mkdir()
  whole = _log(tmp_path / 'whole', every=32)
  run(whole, range(1, 33))
  first = _log(tmp_path, every=32)
  run(first, range(1, 28))
  saved = json.loads(json.dumps(first.state))
  second = _log(tmp_path, 27, saved, every=32)
  run(second, range(28, 33))
  assert second.state == whole.state
  assert second.spikes == 1
  forgetful = _log(tmp_path, 27, saved | {'losses': []}, every=32)
  run(forgetful, range(28, 33))
  assert forgetful.spikes == 0  # so the losses before matter


# --- perf/: a clock that the test sets, and steps of two seconds each.


class _Step:
  """A metric that is ready once its step is complete, two seconds after the one before."""

  def __init__(self, step: int, clock: list[float]):
    self.ready, self.clock = 2.0 * step, clock

  def is_ready(self) -> bool:
    return self.clock[0] >= self.ready

  def fetch(self) -> list[float]:
    self.clock[0] = max(self.clock[0], self.ready)
    return [1.0, 1.0]


@pytest.mark.parametrize('every', [1, 4])
@pytest.mark.parametrize('waits', [True, False])
def test_rates_do_not_depend_on_when_rows_are_fetched(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, waits: bool
) -> None:
  """waits: whether sending off a step takes as long as the step, as it may on CPU."""
  clock = [0.0]
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: clock[0])
  monkeypatch.setattr(
    metrics.jax,
    'device_get',
    lambda sent: [({k: v.fetch() for k, v in m.items()}, {}) for m, _ in sent],
  )
  log = _log(tmp_path, every=every)
  for step in range(1, 9):
    if waits:
      clock[0] = 2.0 * step
    log.add(step, {n: _Step(step, clock) for n in ('train/loss', 'train/skipped_steps')})
    if log.due(step):
      log.flush(_ignore, before=step)
  log.flush(_ignore)
  log.pause()
  clock[0] += 100.0  # evaluating
  log.resume()
  log.close()
  rates = [row['perf/tokens_per_s'] for row in read(tmp_path / FILE) if 'perf/tokens_per_s' in row]
  assert len(rates) >= (2 if every == 4 else 6)
  assert rates == pytest.approx([32.0] * len(rates))
