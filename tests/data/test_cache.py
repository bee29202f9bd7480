"""Made once by whoever comes first, whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from transformer.data import cache


def _slow(folder: Path, log: Path) -> None:
  def build(partial):
    with open(log, 'a') as f:
      f.write('built\n')
    (partial / 'half').touch()
    time.sleep(0.3)
    (partial / 'whole').touch()

  cache.once(folder, build)
  assert (folder / 'whole').exists()


def _start(*args):
  process = multiprocessing.get_context('spawn').Process(target=_slow, args=args)
  process.start()
  return process


def test_many_processes_build_once(tmp_path):
  processes = [_start(tmp_path / 'made', tmp_path / 'log') for _ in range(4)]
  for p in processes:
    p.join(30)
  assert [p.exitcode for p in processes] == [0] * 4
  assert (tmp_path / 'log').read_text() == 'built\n'


def test_killed_build_is_invisible_and_the_next_one_starts_afresh(tmp_path):
  folder = tmp_path / 'made'
  process = _start(folder, tmp_path / 'log')
  deadline = time.time() + 30
  while not (tmp_path / 'made.partial' / 'half').exists() and time.time() < deadline:
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.join(30)
  assert not folder.exists()
  cache.once(folder, lambda partial: (partial / 'new').touch())
  assert os.listdir(folder) == ['new']


def test_failed_build_leaves_nothing(tmp_path):
  def build(partial):
    (partial / 'half').touch()
    raise RuntimeError('no')

  with pytest.raises(RuntimeError):
    cache.once(tmp_path / 'made', build)
  assert os.listdir(tmp_path) == ['made.lock']


def test_folder_by_flag_then_environment_then_home(monkeypatch):
  monkeypatch.setenv('ISOFFN_CACHE', '/from/environment')
  assert cache.root('/from/flag') == Path('/from/flag')
  assert cache.root('') == Path('/from/environment')
  monkeypatch.delenv('ISOFFN_CACHE')
  monkeypatch.setenv('HOME', '/somebody')
  assert cache.root('') == Path('/somebody/.cache/isoffn')
