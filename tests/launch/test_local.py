"""Launches on this machine: shared out, survived, interrupted, repeated."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launch_fakes import FAKE_WORKER, ROOT, executions, make_cells, result, until
from rich.console import Console

from launch import engines, local, records
from launch.cells import Claim, read_json, state, write_config, write_json
from launch.lease import Leases
from transformer.errors import UserError

LAUNCHER = [sys.executable, str(Path(__file__).with_name('launcher.py'))]


def _run(
  workdir: Path, cells: list, workers: int = 2, retries: int = 1
) -> tuple[local.Outcome, str]:
  console = Console(file=io.StringIO(), width=100)
  outcome = local.run(workdir, cells, workers, console, FAKE_WORKER, retries)
  return outcome, console.file.getvalue()


def _launcher(workdir: Path, *names: str) -> subprocess.Popen:
  workdir.mkdir(parents=True, exist_ok=True)
  pipe = subprocess.PIPE
  return subprocess.Popen([*LAUNCHER, workdir, '2', *names], stdout=pipe, stderr=pipe, text=True)


def _names(cells: list) -> list[str]:
  return sorted(c.name for c in cells)


def _processes_of(workdir: Path) -> list[str]:
  """The command lines of the processes that name this run folder."""
  found = []
  for path in Path('/proc').glob('[0-9]*/cmdline'):
    try:
      line = path.read_bytes().decode(errors='replace')
    except OSError:
      continue
    if f'--workdir={workdir}' in line:
      found.append(line)
  return found


def test_each_cell_runs_once_over_two_workers(workdir: Path) -> None:
  names = [f'c{i}' for i in range(6)]
  cells = make_cells(*names)
  outcome, said = _run(workdir, cells)
  assert executions(workdir) == dict.fromkeys(names, 1)
  assert _names(outcome.done) == names
  assert (outcome.failed, outcome.skipped_done, outcome.interrupted) == ([], [], False)
  assert len({p.name for p in (workdir / 'workers').iterdir()}) == 2
  lines = said.splitlines()
  assert len(lines) == 6
  assert lines[-1].startswith('[6/6] c')
  assert 'loss 3.5000  12.3k tokens/s' in lines[-1]
  assert result(cells[0], workdir, 'config.json') == cells[0].config.to_json()
  again, said = _run(workdir, cells)
  assert (_names(again.skipped_done), again.done, said) == (names, [], '')
  assert not _processes_of(workdir)


def test_the_cell_at_which_a_worker_dies_is_charged_and_the_others_finish(workdir: Path) -> None:
  cells = make_cells('a', 'die-b', 'exit-c', 'crash-d', 'fail-e', 'f')
  outcome, said = _run(workdir, cells)
  assert _names(outcome.done) == ['a', 'f']
  assert _names(outcome.failed) == ['crash-d', 'die-b', 'exit-c', 'fail-e']
  died = dict.fromkeys(('crash-d', 'die-b', 'exit-c'), 2)  # once more, as that may pass
  assert executions(workdir) == {'a': 1, 'f': 1, 'fail-e': 1} | died
  failed = {c.name: result(c, workdir, 'failed.json') for c in outcome.failed}
  assert {name: f['cause'] for name, f in failed.items()} == {
    'die-b': 'died',
    'exit-c': 'died',
    'crash-d': 'died',
    'fail-e': 'bug',
  }
  assert failed['die-b']['message'] == (
    'its process was killed by SIGKILL (the system does so when memory runs out)'
  )
  assert failed['exit-c']['message'] == 'its process ended with status 3'
  assert failed['crash-d']['message'] == 'its process was killed by SIGABRT'
  assert 'Fatal Python error: Aborted' in failed['crash-d']['log_tail']
  assert failed['die-b']['log_tail'].startswith('running die-b-')
  assert 'exit-c  tried again (died)  its process ended with status 3' in said
  assert 'exit-c  FAILED (died)  its process ended with status 3' in said
  again, _ = _run(workdir, cells, retries=0)  # the next launch tries again
  assert _names(again.failed) == _names(outcome.failed)
  told = result(cells[1], workdir, 'failed.json')
  assert (told['attempts'], told['tries']) == (3, 1)
  assert executions(workdir) == {'a': 1, 'f': 1, 'fail-e': 2} | dict.fromkeys(died, 3)


def test_a_try_that_got_further_than_the_one_before_is_the_first_again(workdir: Path) -> None:
  (cell,) = make_cells('further-a')  # dies at each of three steps, one further each time
  outcome, _ = _run(workdir, [cell], retries=1)
  assert (_names(outcome.done), executions(workdir)) == (['further-a'], {'further-a': 4})


def test_workers_that_cannot_start_are_reported_not_retried_for_ever(workdir: Path) -> None:
  console = Console(file=io.StringIO(), width=100)
  broken = [sys.executable, '-c', 'import no_such_module']
  with pytest.raises(UserError) as e:
    local.run(workdir, make_cells('a', 'b'), 2, console, broken)
  assert str(e.value).endswith(
    '.log: workers end before they begin a cell; its process ended with status 1: '
    "ModuleNotFoundError: No module named 'no_such_module'"
  )
  assert 'Traceback' in console.file.getvalue()


def test_a_full_disk_ends_the_launch_and_leaves_no_worker(workdir: Path) -> None:
  cells = make_cells('slow-a', 'full-b')
  with pytest.raises(OSError, match='No space left') as e:
    _run(workdir, cells)
  assert e.value.filename == str(cells[1].folder(workdir) / 'checkpoints')
  assert not _processes_of(workdir)
  assert [state(c.folder(workdir)) for c in cells] == ['todo', 'todo']


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
  (tmp_path / 'file').touch()
  with pytest.raises(NotADirectoryError) as e:
    _run(tmp_path / 'file', make_cells('a'))
  assert str(tmp_path / 'file') in e.value.filename


def test_a_corrupt_result_is_named_before_anything_runs(workdir: Path) -> None:
  cells = make_cells('a', 'b')
  write_config(cells[0], workdir)
  (cells[0].folder(workdir) / 'done.json').write_text('')
  with pytest.raises(UserError, match=r'done\.json: not a JSON object'):
    _run(workdir, cells)
  assert not executions(workdir)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_launch_is_continued_and_nothing_repeated(
  workdir: Path, number: signal.Signals
) -> None:
  names = ['a', 'slow-b', 'slow-c', 'd']
  cells = make_cells(*names)
  process = _launcher(workdir, *names)
  until(lambda: {'slow-b', 'slow-c'} <= set(executions(workdir)))
  assert process.poll() is None
  assert len(_processes_of(workdir)) == 2
  done = [c.name for c in cells if state(c.folder(workdir)) == 'done']
  process.send_signal(number)
  out, err = process.communicate(timeout=10)
  if number == signal.SIGINT:
    assert process.returncode == 0, err
    assert out.startswith('interrupted')
    assert 'stopping: workers save their state and leave' in err
  until(lambda: not _processes_of(workdir))  # also when the launcher could not tell them
  stopped = [c for c in cells if c.name.startswith('slow')]
  assert all((c.folder(workdir) / 'checkpoint').exists() for c in stopped)
  assert not any((c.folder(workdir) / 'claim.json').exists() for c in cells)
  (workdir / 'go').touch()
  outcome, _ = _run(workdir, cells)
  assert _names(outcome.skipped_done) == sorted(done)
  assert _names([*outcome.done, *outcome.skipped_done]) == sorted(names)
  assert executions(workdir) == {'a': 1, 'd': 1, 'slow-b': 2, 'slow-c': 2}


def test_a_second_signal_kills(workdir: Path) -> None:
  deaf = [sys.executable, '-c', 'import signal, sys, time\n' + DEAF]
  script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(ROOT)]!r}
from launch_fakes import make_cells
from launch import local
print(local.run({str(workdir)!r}, make_cells('a', 'b'), 2, None, {deaf!r}).interrupted)
"""
  pipe = subprocess.PIPE
  process = subprocess.Popen([sys.executable, '-c', script], stdout=pipe, stderr=pipe, text=True)
  until(lambda: len(list(workdir.glob('deaf-*'))) == 2)
  process.send_signal(signal.SIGTERM)
  assert process.stderr.readline().startswith('stopping')
  assert len(_processes_of(workdir)) == 2
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=5)
  assert (out, process.returncode) == ('True\n', 0), err
  assert not _processes_of(workdir)


DEAF = """
import os
signal.signal(signal.SIGTERM, signal.SIG_IGN)
workdir = next(a for a in sys.argv if a.startswith('--workdir=')).partition('=')[2]
open(f'{workdir}/deaf-{os.getpid()}', 'w').close()
time.sleep(60)
"""


def test_two_launchers_share_a_folder(workdir: Path) -> None:
  names = [f'some-{i}' for i in range(6)]
  launchers = [_launcher(workdir, *names) for _ in range(2)]
  said = [p.communicate(timeout=20) for p in launchers]
  assert executions(workdir) == dict.fromkeys(names, 1)
  for out, err in said:
    assert out == 'finished 6\n', err  # each has seen all six to their end


def test_a_cell_of_a_dead_launcher_is_taken_over_by_the_one_that_waits(workdir: Path) -> None:
  cells = make_cells('slow-a')
  first = _launcher(workdir, 'slow-a')
  until(lambda: executions(workdir))
  second = _launcher(workdir, 'slow-a')
  until(lambda: (workdir / 'workers/worker-0.log').exists())
  pid = read_json(cells[0].folder(workdir) / 'claim.json')['pid']
  os.kill(first.pid, signal.SIGKILL)
  first.communicate()
  until(lambda: executions(workdir)['slow-a'] == 2)
  assert read_json(cells[0].folder(workdir) / 'claim.json')['pid'] != pid
  (workdir / 'go').touch()
  assert second.communicate(timeout=10)[0] == 'finished 1\n'


def _claim_from_afar(folder: Path) -> None:
  Claim.acquire(folder)
  claim = {**read_json(folder / 'claim.json'), 'host': 'node7', 'pid': 42}
  write_json(folder / 'claim.json', claim)


def test_another_hosts_cell_is_awaited_while_its_heart_beats(workdir: Path) -> None:
  (cell,) = make_cells('theirs')
  folder = cell.folder(workdir)
  write_config(cell, workdir)
  _claim_from_afar(folder)
  theirs = Claim(folder, read_json(folder / 'claim.json')['token'], '')

  def work() -> None:
    for count in range(12):  # longer than a lease in all
      write_json(folder / 'heartbeat.json', {'count': count})
      time.sleep(0.1)
    theirs.commit({'eval/loss': 3.0})

  other = threading.Thread(target=work)
  other.start()
  outcome, _ = _run_with_lease(workdir, [cell], 0.5)
  other.join()
  assert (_names(outcome.done), executions(workdir)) == (['theirs'], {})


def test_a_cell_whose_holder_gives_no_sign_of_life_is_run_again(workdir: Path) -> None:
  cells = make_cells('a', 'theirs')
  write_config(cells[1], workdir)
  _claim_from_afar(cells[1].folder(workdir))
  outcome, said = _run_with_lease(workdir, cells, 0.5)
  assert (_names(outcome.done), outcome.failed) == (['a', 'theirs'], [])
  assert 'theirs  tried again (lost)  no sign of life of process 42 on node7' in said


def test_a_worker_that_stands_still_is_killed_and_its_cell_run_by_another(workdir: Path) -> None:
  (cell,) = make_cells('pause-a')  # stops itself, the first time
  outcome, said = _run_with_lease(workdir, [cell], 0.5)
  assert _names(outcome.done) == ['pause-a']
  assert executions(workdir) == {'pause-a': 2}
  assert 'pause-a  tried again (lost)  no sign of life for 60 s; its process was killed' in said
  assert not _processes_of(workdir)


def _run_with_lease(workdir: Path, cells: list, seconds: float) -> tuple[local.Outcome, str]:
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(local, 'Leases', lambda: Leases(seconds))
    return _run(workdir, cells)


def test_a_launch_is_cancelled_from_elsewhere(workdir: Path) -> None:
  process = _launcher(workdir, 'slow-a', 'slow-b')
  until(lambda: len(executions(workdir)) == 2)
  (record,) = records.read(workdir)
  assert record['pid'] == process.pid
  assert len(engines.cancel(workdir)) == 1
  out, err = process.communicate(timeout=10)
  assert (out, process.returncode) == ('interrupted 0\n', 0), err
  assert all((c.folder(workdir) / 'checkpoint').exists() for c in make_cells('slow-a', 'slow-b'))
  assert not records.read(workdir)  # it has ended
  (workdir / 'go').touch()
  outcome, _ = _run(workdir, make_cells('slow-a', 'slow-b'))
  assert len(outcome.done) == 2
