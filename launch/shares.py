"""Cells dealt out to the tasks of a cluster: what an engine submits, and a task reads.

<workdir>/tasks/<name>.json   which task has which cells, and how it is to run them
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from launch import records, snapshot
from launch.claims import failures
from launch.files import read_json, write_json
from launch.job import Job
from transformer import plugin
from transformer.config import LaunchConfig
from transformer.errors import UserError

READ = ('per_task', 'throttle', 'nodes', 'cpus', 'memory', 'gpus', 'grace')  # by every engine
TASK = ('-m', 'launch.task')  # what Python runs as a task
_PATIENCE = 120.0  # seconds for a command of a cluster to answer


@dataclass(frozen=True)
class Shares:
  """name: the same for the same cells, settings and code, so that nothing is submitted twice.

  cells: folder names, by task. failed: cell -> how often it had failed before. code: folder of the
  snapshot. plugins: file -> its copy there.
  """

  name: str
  workdir: Path
  cells: list[list[str]]
  failed: dict[str, int]
  launch: LaunchConfig
  code: Path
  plugins: dict[str, str]

  @property
  def path(self) -> Path:
    return self.workdir / 'tasks' / f'{self.name}.json'

  def task(self) -> list[str]:
    """The arguments of Python that run a task, but for its --index."""
    return [*TASK, f'--shares={self.path}']

  def python_path(self) -> str:
    """The snapshot before all else; what was importable at submission stays so."""
    rest = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(self.code), os.getcwd(), *filter(None, rest)]))


def deal(job: Job) -> Shares:
  """Deals out a job's cells, `--launch.per_task` to a task, in their order. Writes nothing."""
  if not job.cells:
    raise UserError(f'{job.workdir}: no cell is left to run')
  workdir, each = job.workdir.absolute(), job.launch.per_task
  line(str(workdir), '--workdir')
  for cell in job.cells:
    tree = read_json(workdir / 'cells' / cell / 'config.json', strict=False) or {}
    plugin.load(tree.get('plugin') or '')
  cells = [list(job.cells[i : i + each]) for i in range(0, len(job.cells), each)]
  failed = {name: failures(workdir / 'cells' / name) for name in job.cells}
  code = snapshot.where(workdir)
  # After launch.cancel the same is submitted anew, while the old may still be saving itself.
  cancelled = sum('cancelled' in entry for entry in records.read(workdir))
  told = [str(workdir), cells, failed, dataclasses.asdict(job.launch), code.name, cancelled]
  digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
  plugins = snapshot.plugins(code)
  return Shares(f'isoffn-{digest}', workdir, cells, failed, job.launch, code, plugins)


def write(shares: Shares) -> None:
  """Takes the snapshot of the code and writes what tasks read."""
  snapshot.take(shares.workdir)
  shares.path.parent.mkdir(exist_ok=True)
  for left in shares.path.parent.glob(f'{shares.name}-*.json'):  # counts of an earlier submission
    left.unlink()
  tree = dataclasses.asdict(shares)
  write_json(shares.path, tree | {'workdir': str(shares.workdir), 'code': str(shares.code)})


def read(path: Path) -> Shares:
  """Inverse of `write`. Raises UserError for a file that is not there or is damaged."""
  tree = read_json(path)
  try:
    places = {key: Path(tree[key]) for key in ('workdir', 'code')}
    return Shares(**tree | places | {'launch': LaunchConfig(**tree['launch'])})
  except (TypeError, KeyError):
    raise UserError(f'--shares={path}: does not say what to run; submit the cells again') from None


def line(value: str, flag: str) -> str:
  """The value, which must be one line of printable characters, not starting with '-'."""
  if not value.isprintable() or value.startswith('-'):
    raise UserError(f'{flag}={value!r}: should be one line of plain text')
  return value


def matching(value: str, pattern: str, flag: str, right: str) -> str:
  """The value, which must match a pattern as a whole. right: what would, in words."""
  if not re.fullmatch(pattern, value):
    raise UserError(f'{flag}={value!r}: should be {right}')
  return value


def memory(launch: LaunchConfig) -> str:
  """The memory asked for, checked; '' for the cluster's default."""
  right = "a number and M, G or T, as in '16G'"
  return matching(launch.memory, r'(\d+[MGT])?', '--launch.memory', right)


def command(args: list[str], given: str = '', missing: str = '') -> str:
  """Runs a command of a cluster; returns its output.

  given: its standard input. missing: where it is found. Raises UserError with its last complaint.
  """
  try:
    done = subprocess.run(args, input=given, capture_output=True, text=True, timeout=_PATIENCE)
  except FileNotFoundError:
    raise UserError(f'{args[0]}: no such command here; {missing}') from None
  except subprocess.TimeoutExpired:
    raise UserError(f'{args[0]}: no answer within {_PATIENCE:.0f} seconds') from None
  if done.returncode:
    said = [text.strip() for text in done.stderr.splitlines() if text.strip()]
    reason = said[-1] if said else f'{shlex.join(args)}: status {done.returncode}'
    raise UserError(reason.replace(': error: ', ': ', 1))
  return done.stdout
