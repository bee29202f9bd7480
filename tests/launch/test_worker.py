"""What a worker does with cells that finish, fail, or are to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from launch_fakes import FAKE_WORKER, executions, make_cells, result, until

from launch import worker
from launch.cells import Claim, code_digest, state, write_config


def _start(workdir: Path, cells: list, *more: str) -> subprocess.Popen:
  workdir.mkdir(exist_ok=True)
  for cell in cells:
    write_config(cell, workdir)
  names = ','.join(c.folder_name for c in cells)
  command = [*FAKE_WORKER, f'--workdir={workdir}', f'--cells={names}', *more]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_failing_cell_is_recorded_and_the_next_one_runs(workdir: Path) -> None:
  cells = make_cells('fail-a', 'nan-b', 'c', 'd')
  write_config(cells[3], workdir)
  theirs = Claim.acquire(cells[3].folder(workdir))
  core = min(os.sched_getaffinity(0))
  process = _start(workdir, cells, f'--core={core}')
  assert process.communicate(timeout=10) == ('', '')
  assert process.returncode == 0
  assert executions(workdir) == {'fail-a': 1, 'nan-b': 1, 'c': 1}
  failed = result(cells[0], workdir, 'failed.json')
  assert (failed['cause'], failed['message']) == ('bug', 'ValueError: no luck')
  log = (cells[0].folder(workdir) / 'log.txt').read_text()
  assert log.startswith(f'running {cells[0].folder_name}\nTraceback')
  assert failed['log_tail'].endswith('ValueError: no luck\nat all')
  failed = result(cells[1], workdir, 'failed.json')
  assert (failed['cause'], failed['attempts']) == ('non-finite', 1)
  done = result(cells[2], workdir)
  assert (done['step'], done['code']) == (4, code_digest(cells[2].config))
  beat = result(cells[2], workdir, 'heartbeat.json')
  assert beat == {'count': 2, 'step': 0, 'steps': 4, 'loss': 4.0, 'tokens_per_s': 1e4} | {
    'phase': 'training'
  }
  theirs.check()


def test_a_cell_for_which_memory_is_too_small_is_tried_once(workdir: Path) -> None:
  (cell,) = make_cells('oom-a')
  for _ in range(2):
    process = _start(workdir, [cell], '--launch=x', '--retries=2')
    process.communicate(timeout=10)
  failed = result(cell, workdir, 'failed.json')
  assert (failed['cause'], failed['attempts']) == ('out of memory', 1)
  assert executions(workdir) == {'oom-a': 1}


def test_a_config_that_does_not_exist_or_parse_is_named(workdir: Path) -> None:
  cell = make_cells('a')[0]
  process = _start(workdir, [cell])
  process.communicate(timeout=10)
  folder = cell.folder(workdir)
  (folder / 'done.json').unlink()
  for text, message in (
    ('{"seeed": 1}', "no setting 'seeed'; did you mean seed?"),
    ('{', 'not a JSON object; delete the file to compute it again'),
  ):
    (folder / 'config.json').write_text(text)
    argv = [f'--workdir={workdir}', '--cells', cell.folder_name]
    subprocess.run([*FAKE_WORKER, *argv], timeout=10, check=True)
    failed = result(cell, workdir, 'failed.json')
    assert failed['cause'] == 'refused'
    assert failed['message'] == f'{folder / "config.json"}: {message}'


def test_sigterm_stops_after_a_checkpoint_and_leaves_the_cell_free(workdir: Path) -> None:
  cells = make_cells('slow-a', 'b')
  process = _start(workdir, cells)
  until(lambda: state(cells[0].folder(workdir)) == 'running' and executions(workdir))
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=10)
  assert process.returncode == worker.STOPPED
  assert [state(c.folder(workdir)) for c in cells] == ['todo', 'todo']
  assert (cells[0].folder(workdir) / 'checkpoint').exists()
  assert 'Traceback' not in (cells[0].folder(workdir) / 'log.txt').read_text()


def test_a_lost_claim_leaves_the_new_owner_alone(workdir: Path) -> None:
  cells = make_cells('slow-a', 'b')
  folder = cells[0].folder(workdir)
  process = _start(workdir, cells)
  until(lambda: executions(workdir))
  (folder / 'claim.json').unlink()
  mine = Claim.acquire(folder)
  (workdir / 'go').touch()
  process.communicate(timeout=10)
  assert process.returncode == 0
  mine.check()
  assert [state(c.folder(workdir)) for c in cells] == ['running', 'done']
  assert not (folder / 'failed.json').exists()


def test_a_full_disk_ends_the_worker_and_is_reported(workdir: Path) -> None:
  cells = make_cells('full-a', 'b')
  process = _start(workdir, cells)
  out, _ = process.communicate(timeout=10)
  assert process.returncode == worker.DISK
  assert json.loads(out)[2] == str(cells[0].folder(workdir) / 'checkpoints')
  assert [state(c.folder(workdir)) for c in cells] == ['todo', 'todo']
  assert executions(workdir) == {'full-a': 1}
