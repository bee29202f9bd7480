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
}
TEXT = {
  'model.vocab_size': 0,
  'data.tokenizer': 'byte',
  'train.steps': 40,
  'train.log_every': 4,
  'train.checkpoint_every': 5,
  'train.eval_every': 16,
}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict:
  """Settings of a few kilobytes of text."""
  folder = tmp_path_factory.mktemp('corpus')
  words = 'the feed forward network of a small transformer maps each position on its own'.split()
  chance = random.Random(0)
  for k in range(4):
    lines = (' '.join(chance.choices(words, k=8)) for _ in range(40))
    (folder / f'{k}.txt').write_text('\n'.join(lines))
  return {'data.source': f'text:{folder}/*.txt', 'data.cache': str(folder / 'cache')}


@pytest.fixture(scope='module')
def undisturbed(corpus: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  """Folders of runs that nothing happened to, all by one process."""
  workdir = tmp_path_factory.mktemp('undisturbed')
  cells = [
    # `synthetic` comes second to a run that shares its program but none of its numbers.
    cell('other', **SYNTHETIC | {'seed': 7, 'optim.learning_rate': 0.01, 'train.steps': 9}),
    cell('synthetic', **SYNTHETIC),
    cell('text', **TEXT | corpus),
  ]
  programs = workdir / 'programs'
  assert start_worker(workdir, *cells, programs=programs).wait(timeout=120) == 0
  assert all((c.folder(workdir) / 'done.json').exists() for c in cells)
  return {c.name: c.folder(workdir) for c in cells} | {'programs': programs}


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


def test_killed_at_every_kind_of_moment(undisturbed: dict[str, Path], tmp_path: Path) -> None:
  c = cell('synthetic', **SYNTHETIC)
  folder = c.folder(tmp_path)
  checkpoints = folder / 'checkpoints'

  def half_saved() -> list:
    return list(checkpoints.glob('*orbax-checkpoint-tmp*'))

  moments = {
    'before the first checkpoint': lambda: len(rows(folder)) > 0,
    'while one is written': half_saved,
    'as one becomes complete': lambda: any(s > newest for s in saved_steps(folder)),
    'during evaluation': lambda: newest > 0 and phase(folder) == 'evaluating',
    'after the last, before the result': lambda: 60 in saved_steps(folder) and len(done()) == 0,
  }

  def done() -> list:
    return list(folder.glob('done.json'))

  for name, moment in moments.items():
    newest = max(saved_steps(folder), default=0)
    process = start_worker(tmp_path, c, pace=PACE, programs=undisturbed['programs'])
    _kill_when(moment, process)
    print(name, 'at', rows(folder)[-1:], saved_steps(folder), half_saved())
    assert not done()
  assert start_worker(tmp_path, c, programs=undisturbed['programs']).wait(timeout=60) == 0
  _assert_same(folder, undisturbed['synthetic'])


def test_asked_to_stop_at_any_step(undisturbed: dict[str, Path], tmp_path: Path) -> None:
  c = cell('synthetic', **SYNTHETIC)
  folder = c.folder(tmp_path)
  process = start_worker(tmp_path, c, pace=PACE, programs=undisturbed['programs'])
  until(lambda: rows(folder) and rows(folder)[-1]['step'] >= 9, process)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == STOPPED
  stopped_at = max(saved_steps(folder))
  assert 10 <= stopped_at < 14  # at once: before step 14, whose checkpoint was due
  assert not (folder / 'claim.json').exists()
  assert start_worker(tmp_path, c, programs=undisturbed['programs']).wait(timeout=60) == 0
  _assert_same(folder, undisturbed['synthetic'])


def test_killed_at_random_steps_of_a_run_on_text(
  undisturbed: dict[str, Path], corpus: dict, tmp_path: Path
) -> None:
  c = cell('text', **TEXT | corpus)
  folder = c.folder(tmp_path)
  for low, high in ((1, 14), (15, 36)):
    step = random.randint(low, high)
    print('killed at', step)
    process = start_worker(tmp_path, c, pace=PACE, programs=undisturbed['programs'])
    _kill_when(lambda: (rows(folder) or [{'step': 0}])[-1]['step'] >= step // 4 * 4, process)  # noqa: B023
  assert start_worker(tmp_path, c).wait(timeout=60) == 0
  _assert_same(folder, undisturbed['text'])


def test_the_comparison_can_fail(undisturbed: dict[str, Path]) -> None:
  with pytest.raises(AssertionError):
    _assert_same(undisturbed['other'], undisturbed['synthetic'])
