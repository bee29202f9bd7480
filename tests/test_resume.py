"""A run that is killed again and again writes what an undisturbed one writes, to the bit."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.worker import STOPPED
from tests.processes import (
  assert_same_params,
  cell,
  phase,
  read,
  rows,
  saved_steps,
  start_worker,
  until,
)

PACE = 0.02
# log_every divides neither checkpoint_every nor eval_every; dropout and micro-batches are on.
SYNTHETIC = {
  'model.dropout': 0.1,
  'train.accumulate': 2,
  'train.steps': 60,
  'train.log_every': 3,
  'train.checkpoint_every': 7,
  'train.eval_every': 20,
  'train.diagnose': 11,
}
TEXT = {
  'model.vocab_size': 0,
  'data.tokenizer': 'byte',
  'train.steps': 40,
  'train.log_every': 4,
  'train.checkpoint_every': 5,
  'train.eval_every': 16,
}


def _kill_when(moment: Callable[[], object], process: subprocess.Popen) -> None:
  until(moment, process)
  assert process.poll() is None  # alive when killed
  process.kill()
  assert process.wait() == -signal.SIGKILL


def _assert_same(folder: Path, undisturbed: Path) -> None:
  assert rows(folder) == rows(undisturbed)
  assert_same_params(folder, undisturbed)
  exempt = ('tokens_per_s', 'seconds', 'token', 'code')
  done, expected = (read(f / 'done.json') for f in (folder, undisturbed))
  assert {k: v for k, v in done.items() if k not in exempt} == {
    k: v for k, v in expected.items() if k not in exempt
  }


def test_a_run_disturbed_at_every_kind_of_moment(tmp_path: Path) -> None:
  # Undisturbed, it even comes second to a run that shares its program but none of its numbers.
  other = cell('other', **SYNTHETIC | {'seed': 7, 'optim.learning_rate': 0.01, 'train.steps': 9})
  c = cell('synthetic', **SYNTHETIC)
  (tmp_path / 'undisturbed').mkdir()
  process = start_worker(tmp_path / 'undisturbed', other, c)
  assert process.wait(timeout=120) == 0
  undisturbed, folder = c.folder(tmp_path / 'undisturbed'), c.folder(tmp_path)
  with pytest.raises(AssertionError):  # so the comparison can fail
    _assert_same(other.folder(tmp_path / 'undisturbed'), undisturbed)

  def sitting() -> subprocess.Popen:
    (folder / 'heartbeat.json').unlink(missing_ok=True)  # the last sitting's
    return start_worker(tmp_path, c, pace=PACE)

  # Training, before the first checkpoint (on a very slow machine, soon after it).
  _kill_when(lambda: rows(folder), sitting())
  # While a checkpoint is written.
  _kill_when(lambda: list((folder / 'checkpoints').glob('*.orbax-checkpoint-tmp')), sitting())
  # As one becomes complete.
  _kill_when(lambda: saved_steps(folder), sitting())
  # Asked to stop, at a step of no meaning: it saves itself there and then.
  newest = max(saved_steps(folder))
  process = sitting()
  until(lambda: phase(folder) == 'training', process)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == STOPPED
  asked = max(saved_steps(folder))
  assert newest < asked < 60
  assert not (folder / 'claim.json').exists()
  # Evaluating.
  _kill_when(lambda: phase(folder) == 'evaluating', sitting())
  assert asked <= max(saved_steps(folder)) < 60
  # After the last checkpoint, before the result.
  _kill_when(lambda: 60 in saved_steps(folder), sitting())
  assert not (folder / 'done.json').exists()
  assert start_worker(tmp_path, c).wait(timeout=60) == 0
  _assert_same(folder, undisturbed)


@pytest.mark.exhaustive
def test_a_run_on_text_killed_at_random_steps(tmp_path: Path) -> None:
  words = ['the', 'feed', 'forward', 'network', 'maps', 'each', 'position', 'on', 'its', 'own']
  chance = random.Random(0)
  for k in range(4):
    lines = (' '.join(chance.choices(words, k=8)) for _ in range(40))
    (tmp_path / f'{k}.txt').write_text('\n'.join(lines))
  text = {'data.source': f'text:{tmp_path}/*.txt', 'data.cache': str(tmp_path / 'cache')}
  c = cell('text', **TEXT | text)
  (tmp_path / 'undisturbed').mkdir()
  process = start_worker(tmp_path / 'undisturbed', c)
  assert process.wait(timeout=120) == 0
  folder = c.folder(tmp_path)
  for low, high in ((1, 3), (4, 9)):
    row = 4 * random.randint(low, high)
    print('killed once row', row, 'is written')
    process = start_worker(tmp_path, c, pace=PACE)
    _kill_when(lambda: any(r['step'] >= row for r in rows(folder)), process)  # noqa: B023
  # Compiled anew: what a run continues with is not the very same program.
  assert start_worker(tmp_path, c).wait(timeout=60) == 0
  _assert_same(folder, c.folder(tmp_path / 'undisturbed'))
