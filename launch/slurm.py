"""Cells as an array of Slurm jobs: each task runs its share, and is requeued until that is done.

What users give goes to sbatch as arguments, never through a shell; --launch.setup alone is shell.
"""

from __future__ import annotations

import os
import shlex
import sys

from launch import shares
from launch.job import Job
from launch.shares import Shares, command, line, matching
from transformer.config import LaunchConfig
from transformer.errors import UserError

READ = (*shares.READ, 'time', 'partition', 'account', 'qos', 'setup')
_WHERE = "run this where Slurm's commands are, as on a login node"
_WAITING = ('PENDING', 'CONFIGURING', 'REQUEUED', 'REQUEUE_HOLD', 'SPECIAL_EXIT', 'RESV_DEL_HOLD')
_RUNNING = ('RUNNING', 'COMPLETING', 'SUSPENDED', 'STOPPED', 'RESIZING', 'SIGNALING', 'STAGE_OUT')
_TIME = r'(\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2})?'  # minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s


def plan(job: Job) -> str:
  """The commands and scripts that `submit` would hand to Slurm. Raises UserError for bad values."""
  dealt = shares.deal(job)
  scripts = [(_array(dealt), _tasks(dealt))]
  scripts += [(_report(dealt, 'ARRAY'), _reporter(dealt))] * job.report
  return '\n'.join(f"{shlex.join(asked)} <<'END'\n{script}END" for asked, script in scripts)


def submit(job: Job) -> dict:
  """Submits a job's cells, unless just that is in the queue already. Returns the record of it.

  Raises UserError if sbatch is not here, or refuses.
  """
  dealt = shares.deal(job)
  array, report = _array(dealt), ''
  _check_size(dealt)
  shares.write(dealt)
  number = _once(dealt.name, array, _tasks(dealt))
  if job.report:
    try:
      report = _once(f'{dealt.name}-report', _report(dealt, number), _reporter(dealt))
    except UserError as e:  # the array is on its way: it has to be recorded
      print(f'no job for the report: {e}', file=sys.stderr)
  return {'name': dealt.name, 'array': number, 'report': report, 'cells': dealt.cells}


def states(record: dict) -> dict[str, str]:
  """Cell -> 'waiting', 'running' or 'gone', as its task is."""
  asked = ['squeue', '--noheader', '--array', f'--jobs={record["array"]}', '--format=%K|%T']
  try:
    said = command(asked, missing=_WHERE)
  except UserError as e:
    if not _is_over(e):
      raise
    said = ''
  tasks = dict(row.split('|') for row in said.split())
  found = {}
  for index, cells in enumerate(record['cells']):
    now = tasks.get(str(index), '')
    kind = 'waiting' if now in _WAITING else 'running' if now in _RUNNING else 'gone'
    found |= dict.fromkeys(cells, kind)
  return found


def cancel(record: dict) -> None:
  """Cancels what is left of a submission. Running cells get SIGTERM, and KillWait to save state."""
  for job in filter(None, (record['array'], record['report'])):
    try:
      command(['scancel', job], missing=_WHERE)
    except UserError as e:
      if not _is_over(e):
        raise


def _is_over(e: UserError) -> bool:
  """Whether a job ended so long ago that Slurm has forgotten it."""
  return 'Invalid job id' in str(e)


def _array(dealt: Shares) -> list[str]:
  """The command that submits the array."""
  launch, last = dealt.launch, len(dealt.cells) - 1
  at_once = f'%{launch.throttle}' if launch.throttle else ''
  asked = [*_sbatch(dealt, dealt.name, '%a'), f'--array=0-{last}{at_once}', '--requeue']
  asked += [f'--signal=B:USR1@{launch.grace}']
  asked += [f'--nodes={launch.nodes}', '--ntasks-per-node=1']
  asked += [f'--cpus-per-task={launch.cpus}'] if launch.cpus else []
  asked += [f'--mem={shares.memory(launch)}'] if launch.memory else []
  return asked + ([f'--gres=gpu:{launch.gpus}'] if launch.gpus else [])


def _report(dealt: Shares, array: str) -> list[str]:
  """The command that submits the job which writes the report once the array has ended."""
  asked = _sbatch(dealt, f'{dealt.name}-report', 'report')
  return [*asked, f'--dependency=afterany:{array}', '--ntasks=1']


def _sbatch(dealt: Shares, name: str, log: str) -> list[str]:
  folder = str(dealt.path.parent).replace('%', '%%')
  asked = ['sbatch', '--parsable', f'--job-name={name}', f'--chdir={os.getcwd()}']
  asked += [f'--output={folder}/{dealt.name}-{log}.log', '--open-mode=append']
  return asked + [f'--{flag}={value}' for flag, value in _placement(dealt.launch).items()]


def _placement(launch: LaunchConfig) -> dict[str, str]:
  right = "a limit as Slurm writes it: minutes, 'hours:minutes:seconds' or 'days-hours'"
  asked = {'time': matching(launch.time, _TIME, '--launch.time', right)}
  if launch.time and _seconds(launch.time) <= launch.grace:
    raise UserError(
      f'--launch.time={launch.time}: is not longer than --launch.grace={launch.grace}'
    )
  for flag in ('partition', 'account', 'qos'):
    asked[flag] = line(getattr(launch, flag), f'--launch.{flag}')
  return {flag: value for flag, value in asked.items() if value}


def _seconds(limit: str) -> int:
  """Seconds of a limit as Slurm writes it."""
  days, dash, rest = limit.rpartition('-')
  parts = [int(part) for part in rest.split(':')]
  units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
  return 86400 * int(days or 0) + sum(a * b for a, b in zip(parts, units, strict=False))


def _tasks(dealt: Shares) -> str:
  """The script of the array."""
  return _script(dealt, f'{shlex.join(dealt.task())} --index="$SLURM_ARRAY_TASK_ID"')


def _reporter(dealt: Shares) -> str:
  """The script of the report."""
  return _script(dealt, shlex.join(['-m', 'experiments.report', f'--workdir={dealt.workdir}']))


def _script(dealt: Shares, arguments: str) -> str:
  """A script that runs Python, from the snapshot, in place of its shell, so that signals reach it.

  arguments: quoted. PYTHONSAFEPATH: else the folder it starts in would come before the snapshot.
  """
  setup = line(dealt.launch.setup, '--launch.setup')
  lines = ['#!/bin/bash', *[setup] * bool(setup), 'export PYTHONSAFEPATH=1']
  lines += [f'export PYTHONPATH={shlex.quote(dealt.python_path())}']
  return '\n'.join([*lines, f'exec {shlex.quote(sys.executable)} {arguments}', ''])


def _once(name: str, asked: list[str], script: str) -> str:
  """Submits a script unless a job of that name is in the queue; returns the number of the job."""
  there = ['squeue', '--noheader', '--me', f'--name={name}', '--format=%F']
  found = command(there, missing=_WHERE).split() or command(asked, script, _WHERE).split(';')
  return found[0].strip()


def _check_size(dealt: Shares) -> None:
  """Raises UserError if there are more tasks than an array may have."""
  said = command(['scontrol', 'show', 'config'], missing=_WHERE)
  fields = dict(row.split('=', 1) for row in said.replace(' ', '').splitlines() if '=' in row)
  most, tasks = int(fields.get('MaxArraySize', 1001)), len(dealt.cells)
  if tasks > most:
    cells = sum(map(len, dealt.cells))
    raise UserError(
      f'--launch.per_task={dealt.launch.per_task}: makes {tasks} tasks, of which Slurm takes '
      f'{most} in an array here; choose {-(-cells // most)}'
    )
