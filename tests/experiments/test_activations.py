"""The main job from flags to report: interrupted, continued, repeated, rebuilt, redone."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes import TINY, flags, read, run, start, until

STEPS = 8
SETTINGS = TINY | {
  'ffn.d_ff': 48,
  'train.steps': STEPS,
  'train.log_every': 4,
  'train.eval_every': 4,
}
VARIANTS = ('relu', 'swiglu', 'identity')
NAMES = {f'{v}-seed{s}' for v in VARIANTS for s in (0, 1)}


def _corpus(folder: Path) -> dict:
  """Settings of a small text of 30 files."""
  folder.mkdir()
  for k in range(30):
    (folder / f'{k}.txt').write_text(f'{k} is a number, and so is {k + 1}.\n' * 20)
  return {'data.source': f'text:{folder}/*.txt', 'data.tokenizer': 'byte', 'model.vocab_size': 0}


def _done(workdir: Path) -> dict[str, int]:
  """Name of each done cell -> when it was done."""
  found = workdir.glob('cells/*/done.json')
  return {p.parent.name.rpartition('-')[0]: p.stat().st_mtime_ns for p in found}


def _started(workdir: Path) -> dict[str, str]:
  """When the run of each cell last began, as its provenance says."""
  found = workdir.glob('cells/*/provenance.json')
  return {p.parent.name: p.read_text() for p in found}


def _succeeds(module: str, *args: str, **env: str) -> subprocess.CompletedProcess:
  ended = run(module, *args, **env)
  assert ended.returncode == 0, ended.stderr
  assert 'Traceback' not in ended.stderr
  return ended


def _assert_report(workdir: Path) -> None:
  page = (workdir / 'report.html').read_text()
  assert 'http://' not in page.replace('http://www.w3.org', '')
  assert 'prefers-color-scheme: dark' in page
  assert '<img' in page or '<svg' in page
  for picture in (workdir / 'plots').glob('*.png'):
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert f'plots/{picture.name}' in (workdir / 'report.md').read_text()


@pytest.mark.exhaustive
def test_interrupted_continued_repeated_rebuilt_and_redone(tmp_path: Path) -> None:
  workdir = tmp_path / 'run'
  settings = SETTINGS | _corpus(tmp_path / 'corpus')
  args = ['--vary=relu,swiglu,identity', '--seeds=0..1', f'--workdir={workdir}', *flags(settings)]
  module = 'experiments.activations'

  # Ctrl-C once something is done.
  process = start(module, *args)
  until(lambda: _done(workdir), process)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert err.endswith('interrupted; the same command continues\n')
  assert 'Traceback' not in err
  before = _done(workdir)
  assert 0 < len(before) < len(NAMES)

  # The report of the half-finished folder.
  ended = _succeeds('experiments.report', f'--workdir={workdir}')
  assert f'Report: {workdir}/report.html' in ended.stdout
  assert 'Unfinished cells' in (workdir / 'report.md').read_text()

  # The same command continues, and recomputes nothing.
  ended = _succeeds(module, *args)
  after = _done(workdir)
  assert after.keys() == NAMES
  assert {name: after[name] for name in before} == before
  assert 'Unfinished cells' not in (workdir / 'report.md').read_text()
  _assert_report(workdir)
  assert {p.stem for p in (workdir / 'plots').glob('*.png')} >= {'loss', 'differences'}
  with open(workdir / 'summary.csv') as f:
    table = {row['variant']: row for row in csv.DictReader(f)}
  assert table.keys() == set(VARIANTS)
  assert len({cell['params'] for cell in read(workdir / 'experiment.json')['cells']}) == 1
  assert read(workdir / 'references.json')['unigram_bits_per_byte'] > 0

  # Once more: nothing to train.
  started = _started(workdir)
  ended = _succeeds(module, *args)
  assert (_done(workdir), _started(workdir)) == (after, started)
  assert ended.stderr == ''
  assert 'swiglu' in ended.stdout

  # More seeds add to what is done; other values of a setting are refused.
  other = run(module, *args, '--optim.weight_decay=0.2')
  assert other.returncode == 2
  assert other.stderr == (
    f'error: --workdir={workdir}: holds runs of another configuration (optim.weight_decay is its '
    'default there, 0.2 asked); choose another folder\n'
  )
  other = run('experiments.train', f'--workdir={workdir}', *flags(settings))
  assert other.returncode == 2
  assert other.stderr == (
    f'error: --workdir={workdir}: holds runs of another configuration (experiment is activations '
    'there, train asked); choose another folder\n'
  )

  # A cell of other code is neither reused nor redone unasked.
  (path,) = workdir.glob('cells/relu-seed0-*/done.json')
  path.write_text(path.read_text().replace(read(path)['code'], '0' * 16))
  old = _done(workdir)
  ended = run(module, *args)
  assert ended.returncode == 2
  assert ended.stderr == (
    f'error: {workdir}: 1 of 6 cells are done or begun, but by other code or from other data than '
    'now; --recompute runs them again, --accept_stale keeps them\n'
  )
  _succeeds(module, *args, '--accept_stale')
  assert _done(workdir) == old
  ended = _succeeds(module, *args, '--recompute')
  new = _done(workdir)
  assert {name for name in new if new[name] != old[name]} == {'relu-seed0'}
  assert read(path)['code'] != '0' * 16

  # So is the whole folder once its text has changed.
  (tmp_path / 'corpus' / '0.txt').write_text('another text\n' * 40)
  os.utime(tmp_path / 'corpus' / '0.txt', (1, 1))
  ended = run(module, *args)
  assert ended.returncode == 2
  assert f'{workdir}: 6 of 6 cells are done or begun, but by other code or' in ended.stderr
  assert _done(workdir) == new


@pytest.mark.exhaustive
def test_a_cell_begun_on_other_data_is_redone_when_asked(tmp_path: Path) -> None:
  workdir = tmp_path / 'run'
  settings = SETTINGS | _corpus(tmp_path / 'corpus')
  settings |= {'train.steps': 2000, 'train.checkpoint_every': 5, 'train.eval_every': 2000}
  args = [f'--workdir={workdir}', *flags(settings)]

  def stop_once_saved(*more: str) -> None:
    was = made_from()
    process = start('experiments.train', *args, *more)
    until(lambda: made_from() not in ('', was) and saved(), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, 'Traceback' in err) == (130, False)

  def saved() -> list[Path]:
    return list(workdir.glob('cells/*/checkpoints/[0-9]*'))

  def made_from() -> str:
    found = [read(p) for p in workdir.glob('cells/*/provenance.json')]
    return found[0]['data']['fingerprint'] if found else ''

  stop_once_saved()
  before = made_from()
  (tmp_path / 'corpus' / '0.txt').write_text('another text\n' * 40)
  ended = run('experiments.train', *args)
  assert (ended.returncode, ended.stderr) == (
    2,
    f'error: {workdir}: 1 of 1 cells are done or begun, but by other code or from other data than '
    'now; --recompute runs them again, --accept_stale keeps them\n',
  )
  ended = run('experiments.train', *args, '--accept_stale')  # half of each cannot be
  assert ended.returncode == 2
  last = ended.stderr.splitlines()[-1]
  assert last.startswith('error: ')
  assert 'was trained on other data' in last
  assert made_from() == before
  stop_once_saved('--recompute')
  assert made_from() != before
