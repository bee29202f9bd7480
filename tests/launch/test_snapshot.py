"""What waits in a queue runs the code that it was submitted with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch_fakes import ROOT, make_cells

from launch import shares, snapshot
from launch.cells import write_config, write_json
from launch.job import Job
from transformer import plugin
from transformer.config import LaunchConfig
from transformer.errors import UserError
from transformer.provenance import git_commit, library_digest

TAKE = """
import sys
from pathlib import Path
from launch import snapshot
print(snapshot.take(Path(sys.argv[1])))
"""
TELL = """
import experiments, launch.task
from transformer import provenance
print(provenance.library_digest(), provenance.git_commit())
print(provenance.__file__, launch.task.__file__)
"""


def _python(code: str, *args: str, **more: str) -> str:
  command = [sys.executable, '-c', code, *args]
  env = {**os.environ, 'PYTHONSAFEPATH': '1', **more}
  return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.strip()


def test_later_edits_are_not_seen(tmp_path: Path) -> None:
  checkout, workdir = tmp_path / 'checkout', tmp_path / 'run'
  for name in ('transformer', 'launch', 'experiments'):
    shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns('__pycache__'))
  (checkout / 'COMMIT').write_text('1234abcd-dirty')
  code = Path(_python(TAKE, str(workdir), PYTHONPATH=str(checkout)))
  assert code.parent == workdir / 'code'
  (checkout / 'transformer' / 'ffn.py').write_text('edited')
  told = _python(TELL, PYTHONPATH=f'{code}{os.pathsep}{checkout}').split()
  assert told[:2] == [library_digest(), '1234abcd-dirty']
  assert told[2:] == [str(code / 'transformer/provenance.py'), str(code / 'launch/task.py')]
  assert _python(TAKE, str(workdir), PYTHONPATH=str(checkout)) != str(code)  # it is another code


def test_a_snapshot_is_taken_once_and_holds_plugins(tmp_path: Path) -> None:
  own = tmp_path / 'my_lab.py'
  own.write_text('# nothing new\n')
  workdir = tmp_path / 'run'
  before = snapshot.where(workdir)
  plugin.load(str(own))
  code = snapshot.take(workdir)
  assert code == snapshot.where(workdir) != before
  assert snapshot.take(workdir) == code
  copy = Path(snapshot.plugins(code)[str(own)])
  assert copy.read_text() == '# nothing new\n'
  assert code in copy.parents
  assert (code / 'COMMIT').read_text() == git_commit()
  assert [p.name for p in (workdir / 'code').iterdir()] == [code.name]


def test_shares_are_written_and_read_and_named_by_what_they_hold(workdir: Path) -> None:
  cells = make_cells('a', 'b', 'c')
  for cell in cells:
    write_config(cell, workdir)
  names = tuple(cell.folder_name for cell in cells)
  job = Job(workdir, names, LaunchConfig(per_task=2), report=False)
  dealt = shares.deal(job)
  assert dealt.cells == [list(names[:2]), [names[2]]]
  assert dealt == shares.deal(job)
  others = [Job(workdir, names[:2], job.launch, False), Job(workdir, names, LaunchConfig(), False)]
  write_json(cells[0].folder(workdir) / 'failed.json', {'attempts': 1})
  others.append(job)  # a cell that has failed since is to be tried anew
  assert len({dealt.name, *(shares.deal(other).name for other in others)}) == 4
  assert not dealt.path.exists()
  shares.write(dealt)
  assert shares.read(dealt.path) == dealt
  dealt.path.write_text('{"name": "x"}')
  with pytest.raises(UserError, match='does not say what to run; submit the cells again'):
    shares.read(dealt.path)
  with pytest.raises(UserError, match='no cell is left to run'):
    shares.deal(Job(workdir, (), LaunchConfig(), report=False))
