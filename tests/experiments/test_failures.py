"""What goes wrong in a cell, in the data or on the disk, and what the user is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes import TINY, flags, phase, read, rows, run, start, until

SETTINGS = TINY | {'train.steps': 6, 'train.log_every': 2}


def _cells(workdir: Path) -> dict[str, Path]:
  """Name of each cell -> its folder."""
  return {p.name.rpartition('-')[0]: p for p in workdir.glob('cells/*')}


def _refused(script: str, workdir: Path, *args: str, **env: str) -> str:
  """The last line of standard error of a command that must end in 'error: …', without that."""
  ended = run(f'experiments.{script}', f'--workdir={workdir}', *flags(SETTINGS), *args, **env)
  assert ended.returncode == 2
  assert ended.stdout == ''
  assert 'Traceback' not in ended.stderr
  last = ended.stderr.splitlines()[-1]
  assert last.startswith('error: ')
  return last.removeprefix('error: ')


def test_a_diverging_cell_is_charged_and_the_other_one_finishes(tmp_path: Path) -> None:
  workdir = tmp_path / 'run'
  # Without eps, Adam divides 0 by 0 where a gradient is 0: in units that relu leaves off for all
  # four tokens of the batch. identity leaves none off.
  settings = SETTINGS | {
    'data.seq_len': 4,
    'data.batch_size': 1,
    'optim.name': 'adamw(eps=0.0)',
    'train.max_bad_steps': 3,
    'train.log_every': 1,
  }
  args = [f'--workdir={workdir}', '--vary=relu,identity', '--seeds=0', *flags(settings)]
  ended = run('experiments.activations', *args)
  assert ended.returncode == 1
  cells = _cells(workdir)
  failed = read(cells['relu-seed0'] / 'failed.json')
  assert failed['cause'] == 'non-finite'
  last = rows(cells['relu-seed0'])[-1]
  assert last['train/skipped_steps'] == 1.0
  assert failed['message'].startswith(
    'NonFinite: 3 steps in a row without a finite loss, gradient and update, up to step '
    f'{last["step"]}: learning rate {last["train/learning_rate"]:.3g}, gradient norm '
  )
  assert failed['message'].endswith(' (--train.max_bad_steps=3)')
  assert failed['message'] in ended.stderr
  assert 'failed: relu-seed0: non-finite: ' in ended.stdout
  assert (cells['identity-seed0'] / 'done.json').exists()
  assert '1 of 2 cells' in (workdir / 'report.md').read_text()
  assert 'max_bad_steps=3' in (workdir / 'report.html').read_text()


@pytest.mark.exhaustive
def test_a_cell_whose_process_is_killed_is_charged_and_the_others_finish(tmp_path: Path) -> None:
  workdir = tmp_path / 'run'
  args = [f'--workdir={workdir}', '--vary=relu,gelu', '--seeds=0..1', '--launch.workers=1']
  args.append('--launch.retries=0')
  args += flags(SETTINGS | {'train.steps': 400})
  process = start('experiments.activations', *args)

  def training() -> list[Path]:
    return [f for f in workdir.glob('cells/*') if phase(f) == 'training']

  until(training, process)
  (victim,) = training()
  worker = read(victim / 'claim.json')['pid']
  os.kill(worker, 0)  # alive when killed
  assert not (victim / 'done.json').exists()
  os.kill(worker, signal.SIGKILL)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 1
  name = victim.name.rpartition('-')[0]
  said = 'its process was killed by SIGKILL (the system does so when memory runs out)'
  assert read(victim / 'failed.json')['message'] == said
  assert f'{name}  FAILED (died)  {said}' in err
  assert f'failed: {name}: died: {said}' in out
  others = [f for n, f in _cells(workdir).items() if n != name]
  assert len(others) == 3
  assert all((f / 'done.json').exists() for f in others)
  assert (workdir / 'report.html').exists()


def test_what_devices_refuse_is_said_last_and_once(tmp_path: Path) -> None:
  eight = '--xla_force_host_platform_device_count=8'
  assert _refused('train', tmp_path / 'run', XLA_FLAGS=eight) == (
    '--data.batch_size=4: 4 sequences a micro-batch (--train.accumulate=1) are not divisible by '
    '8 devices'
  )
  assert not (tmp_path / 'run').exists()  # nothing is left that a corrected command would meet


def test_a_corpus_that_is_not_there_or_not_text(tmp_path: Path) -> None:
  source = f'text:{tmp_path}/*.txt'
  args = [f'--data.source={source}', '--data.tokenizer=byte', '--model.vocab_size=0']
  workdir = tmp_path / 'run'
  assert _refused('train', workdir, *args) == f'--data.source={source}: no file matches'
  assert not workdir.exists()
  (tmp_path / 'a.txt').write_text('')
  assert _refused('train', workdir, *args) == f'--data.source={source}: the files hold no text'
  (tmp_path / 'a.txt').write_text('plain text\n' * 40)
  (tmp_path / 'b.txt').write_bytes(b'caf\xe9 in latin-1')
  assert _refused('train', workdir, *args) == (
    f'--data.source={source}: {tmp_path / "b.txt"} is not UTF-8 at byte 3; '
    'convert it or leave it out'
  )
  (tmp_path / 'b.txt').write_text('too little')
  told = _refused('train', workdir, *args, '--data.batch_size=64')
  assert told.endswith('of --data.batch_size=64 rows of --data.seq_len=16 needs 1,025')
  assert not workdir.exists()


@pytest.mark.parametrize(
  'inside, why',
  [
    ('file', 'File exists'),
    ('file/below', 'Not a directory'),
    ('/proc', 'No such file or directory'),
    ('/proc/new', 'No such file or directory'),
  ],
)
def test_a_folder_that_cannot_be_written(tmp_path: Path, inside: str, why: str) -> None:
  (tmp_path / 'file').write_text('mine')
  workdir = tmp_path / inside
  assert _refused('train', workdir) == f'--workdir={workdir}: cannot be written ({why})'
  assert (tmp_path / 'file').read_text() == 'mine'


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
  for k in range(30):
    (tmp_path / f'{k}.txt').write_text(f'{k} plain text\n' * 40)
  args = [f'--data.source=text:{tmp_path}/*.txt', '--data.tokenizer=byte', '--model.vocab_size=0']
  told = _refused('train', tmp_path / 'run', *args, '--data.cache=/dev/null/cache')
  assert told.startswith('--data.cache: /dev/null/cache/tokens cannot be written (Not a directory)')
  assert not (tmp_path / 'run').exists()


def test_a_full_disk(tmp_path: Path) -> None:
  mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=100k', 'tmpfs', tmp_path])
  if mounted.returncode:
    pytest.skip('mounting a small file system takes privileges that are not ours')
  try:
    workdir = tmp_path / 'run'
    told = _refused('train', workdir)
    assert told.startswith(str(workdir))
    assert told.endswith(': No space left on device')
    (folder,) = _cells(workdir).values()
    assert not any((folder / name).exists() for name in ('done.json', 'failed.json'))
    assert not list(folder.glob('checkpoints/[0-9]'))
    subprocess.run(['mount', '-o', 'remount,size=256k', tmp_path], check=True)
    told = _refused('train', workdir)  # room for the run, not for its report
    assert re.fullmatch(rf'{workdir}(/(plots/|report|summary).*)?: No space left on device', told)
    done = (folder / 'done.json').read_text()
    subprocess.run(['mount', '-o', 'remount,size=16m', tmp_path], check=True)
    ended = run('experiments.train', f'--workdir={workdir}', *flags(SETTINGS))
    assert ended.returncode == 0, ended.stderr  # with room, the same command goes on
    assert (folder / 'done.json').read_text() == done
  finally:
    subprocess.run(['umount', tmp_path], check=True)
