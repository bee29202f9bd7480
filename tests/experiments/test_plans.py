"""What experiments plan to run, told by --dry_run."""

from __future__ import annotations

import re

import pytest

from tests.processes import run


def _plan(script: str, *args: str) -> dict[str, dict[str, float]]:
  """Variant -> column -> number, of the table that --dry_run prints."""
  ended = run(f'experiments.{script}', '--dry_run', *args)
  assert ended.returncode == 0, ended.stderr
  plan = {}
  for line in ended.stdout.splitlines():
    cells = re.split(r'\s{2,}', line.strip())
    if len(cells) == 7 and cells[1].isdigit():
      names = ('seeds', 'd_model', 'd_ff', 'parameters', 'flops')
      numbers = (int(c.replace(',', '')) for c in cells[1:6])
      plan[cells[0]] = dict(zip(names, numbers, strict=True))
  return plan


def _spread(plan: dict, column: str) -> float:
  """Largest departure from the baseline, as a share of it."""
  budget = next(iter(plan.values()))[column]
  return max(abs(row[column] / budget - 1) for row in plan.values())


@pytest.mark.parametrize('match, column', [('params', 'parameters'), ('flops', 'flops')])
def test_widths_keep_to_the_budget(match: str, column: str) -> None:
  plan = _plan('ffn_width', f'--match={match}', '--vary=4,0.25,1,2,8,16')
  assert len(plan) == 6
  assert 0 < _spread(plan, column) < 0.005
  ratios = {name: row['d_ff'] / row['d_model'] for name, row in plan.items()}
  for name, ratio in ratios.items():
    assert ratio == pytest.approx(float(name), rel=0.35)  # d_ff takes up the remainder
  widths = [row['d_model'] for _, row in sorted(plan.items(), key=lambda x: ratios[x[0]])]
  assert widths == sorted(widths, reverse=True)  # wider FFN, narrower model


def test_widths_without_a_budget_keep_d_model() -> None:
  plan = _plan('ffn_width', '--match=none', '--vary=4,1,8')
  assert {row['d_model'] for row in plan.values()} == {96}
  assert {name: row['d_ff'] for name, row in plan.items()} == {'4': 384, '1': 96, '8': 768}


def test_activations_have_equal_parameters_or_flops() -> None:
  plan = _plan('activations')
  assert list(plan) == ['relu', 'gelu', 'silu', 'relu2', 'geglu', 'swiglu', 'identity']
  assert {row['parameters'] for row in plan.values()} == {plan['relu']['parameters']}
  assert {row['flops'] for row in plan.values()} == {plan['relu']['flops']}
  assert (plan['relu']['d_ff'], plan['swiglu']['d_ff']) == (384, 256)
  none = _plan('activations', '--match=none', '--vary=relu,swiglu', '--seeds=0..7')
  assert none['swiglu']['d_ff'] == none['relu']['d_ff'] == 384
  assert none['relu']['seeds'] == 8


def test_variants_with_arguments_and_repeats_are_told_once() -> None:
  plan = _plan('activations', '--vary=relu, gelu ,relu', '--baseline=gelu', '--seeds=0,2,5')
  assert {name: row['seeds'] for name, row in plan.items()} == {'relu': 3, 'gelu': 3}
