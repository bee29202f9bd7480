"""What a script plans or refuses, told by --dry_run."""

from __future__ import annotations

import re

from tests.processes import run

Plan = dict[str, dict[str, str]]


def plan(script: str, *args: str) -> Plan:
  """Variant -> column -> text, of the table that --dry_run prints."""
  ended = run(f'experiments.{script}', '--dry_run', *args)
  assert (ended.returncode, ended.stderr) == (0, '')
  lines = [re.split(r'\s{2,}', line.strip()) for line in ended.stdout.splitlines()]
  (head,) = (line for line in lines if line[0] == 'variant')
  rows = (line for line in lines if len(line) == len(head) and line is not head)
  return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def column(plan: Plan, name: str) -> dict[str, float]:
  """Variant -> number in one column."""
  return {variant: float(row[name].replace(',', '')) for variant, row in plan.items()}


def spread(plan: Plan, name: str) -> float:
  """Largest departure from the first variant, as a share of it."""
  budget, *others = column(plan, name).values()
  return max(abs(other / budget - 1) for other in others)


def refusal(script: str, *args: str) -> str:
  """The one line of standard error of a plan that must be refused, without 'error: '."""
  ended = run(f'experiments.{script}', '--dry_run', *args)
  assert (ended.returncode, ended.stdout) == (2, '')
  (line,) = ended.stderr.splitlines()
  assert line.startswith('error: ')
  return line.removeprefix('error: ')
