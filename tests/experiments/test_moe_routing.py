"""Routers, dispatchers and dense controls: what is planned and refused, a run to its report."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.planned import column, plan, refusal
from tests.processes import TINY, flags, run


def test_mixtures_have_equal_active_parameters_and_each_control_its_own_match() -> None:
  found = plan('moe_routing')
  active, whole = column(found, 'active'), column(found, 'parameters')
  assert set(active.values()) == {321_504, whole['dense:total']}
  assert whole['dense:active'] == active['topk'] == 321_504
  assert whole['dense:total'] == whole['topk'] == 763_872
  assert found['dense:total']['off budget'] == '+137.59 %'
  assert {v: row['d_ff'] for v, row in found.items()} == {
    'dense:active': '388',  # 2 · 192, and 4 for a router of 8 columns
    'dense:total': '1,540',
    'topk': '192',
    'switch': '384',  # one expert in place of two
    'bias': '192',
    'hash(k=2)': '194',  # no router
    'random': '194',
    'topk/capacity': '192',
  }
  assert [row['experts'] for row in found.values()] == ['–', '–', '2 of 8', '1 of 8'] + 4 * [
    '2 of 8'
  ]


def test_both_counts_are_shown_where_experts_are_the_same() -> None:
  found = plan('moe_routing', '--vary=switch;switch/balance_loss=0', '--baseline=switch')
  assert {row['active'] for row in found.values()} == {'247,776'}
  assert {row['experts'] for row in found.values()} == {'1 of 8'}
  assert 'off budget' not in found['switch']


def test_in_all_parameters_the_active_control_is_the_one_that_is_off() -> None:
  found = plan('moe_routing', '--match=params', '--vary=dense:active,dense:total,switch,topk(k=4)')
  whole = column(found, 'parameters')
  assert whole['dense:total'] == whole['switch'] == whole['topk(k=4)']
  assert whole['dense:active'] == column(found, 'active')['switch']  # the first mixture's
  assert {v for v, row in found.items() if row['off budget'] != '+0.00 %'} == {'dense:active'}
  found = plan('moe_routing', '--baseline=topk(k=4)', '--vary=dense:active,switch,topk(k=4)')
  assert len(set(column(found, 'active').values())) == 1  # the baseline's
  assert found['topk(k=4)']['d_ff'] == '192'


def test_controls_share_batches_over_the_experts_axis() -> None:
  vary = '--vary=dense:active;topk;topk/expert_parallel'
  found = plan('moe_routing', vary, '--parallel.mesh=data:2,expert:2')
  assert [row['experts'] for row in found.values()] == ['–', '2 of 8', '2 of 8']


def test_what_looks_ahead_is_marked() -> None:
  args = '--vary=topk;expert_choice', '--baseline=topk', '--moe.allow_noncausal'
  assert list(plan('moe_routing', *args)) == ['topk', 'expert_choice †']
  shown = run('experiments.moe_routing', '--dry_run', *args).stdout
  assert '\n† routing looks ahead: a lower loss of it is void\n' in shown


_SETTINGS = """
from experiments import lab, moe_routing
from transformer.config import PRESETS, Config, resolve
lab.FLAGS([''])
for mesh in ('', 'data:4', 'expert:2', 'fsdp:2,expert:2,data:3'):
  print(moe_routing._dense_mesh(mesh))
asked = Config().replace(**PRESETS['pilot'] | {'moe.experts': 8, 'moe.capacity_factor': 2.0})
for value in (
  'switch', 'topk(k=4) / capacity', 'bias/capacity(priority=order)/capacity_factor=0.5',
  'topk/balance_loss=0/granularity=2'
):
  m = resolve(moe_routing.mixture(asked, value)).moe
  print(m.router, m.dispatch, m.capacity_factor, m.balance_loss, m.granularity)
"""


def test_a_value_may_name_a_dispatch_and_settings() -> None:
  """In a process of its own: a script defines its flags when it is imported."""
  done = subprocess.run([sys.executable, '-c', _SETTINGS], capture_output=True, text=True)
  assert done.stderr == ''
  assert done.stdout.splitlines() == [
    *('', 'data:4', 'data:2', 'data:6,fsdp:2'),  # of controls
    'switch dropless 1.25 0.01 1',
    'topk(k=4) capacity 2.0 0.01 1',
    'bias capacity 0.5 0.01 1',
    'topk dropless 1.25 0.0 2',
  ]


def test_a_flag_that_acts_on_some_values_is_not_called_idle() -> None:
  args = ('--dry_run', '--vary=topk;topk/capacity', '--baseline=topk')
  assert run('experiments.moe_routing', *args, '--moe.capacity_factor=2').stderr == ''
  idle = '--moe.capacity_factor: changes nothing here, where there is nothing it acts on\n'
  args = ('--dry_run', '--vary=topk;switch', '--baseline=topk')
  assert run('experiments.moe_routing', *args, '--moe.capacity_factor=2').stderr == idle


MISTAKES = {
  '--vary=dense:active': '--vary=dense:active: names no mixture; add one, as in topk',
  '--vary=dense:active,topk/capactiy': "--moe.dispatch=capactiy: no variant 'capactiy'; did you "
  'mean capacity?',
  '--vary=dense:active,topk/capacty_factor=2': '--vary=dense:active,topk/capacty_factor=2: no '
  "setting 'capacty_factor' of moe; did you mean capacity_factor?",
  '--vary=dense:active,topk/dropless/capacity': '--vary=dense:active,topk/dropless/capacity: '
  "'topk/dropless/capacity' names two of the same",
  '--vary=dense:active,topk,topk/experts=0': '--vary=dense:active,topk,topk/experts=0: '
  "'topk/experts=0' has no experts; take one of dense:active, dense:total",
  '--vary=dense:active,topk/capacity_factor=2,topk': '--vary=dense:active,topk/capacity_factor=2,'
  'topk: topk/capacity_factor=2 and topk are the same; leave one out',
  '--vary=dense:active,expert_choice': '--moe.router=expert_choice: looks at tokens ahead, which a '
  'decoder must not; take topk, or --moe.allow_noncausal to measure it all the same',
  '--moe.router=switch': '--moe.router: is what this experiment varies; use --vary',
  '--moe.experts=0': '--moe.experts=0: leaves no mixture to compare; give it 2 or more',
  '--vary=all': '--vary=all: moe has no list of values; name some',
}


@pytest.mark.parametrize('wrong', MISTAKES)
def test_a_mistake_is_one_line(wrong: str) -> None:
  assert refusal('moe_routing', wrong) == MISTAKES[wrong]


def test_from_flags_to_a_report(tmp_path: Path) -> None:
  workdir = tmp_path / 'run'
  told = TINY | {'moe.experts': 4, 'ffn.ratio': 2.0, 'train.steps': 4, 'seeds': '0,1'}
  args = [*flags(told | {'vary': 'dense:active;topk/capacity'}), f'--workdir={workdir}']
  ended = run('experiments.moe_routing', *args)
  assert ended.returncode == 0, ended.stderr
  record = json.loads((workdir / 'experiment.json').read_text())
  dense, routed = record['cells'][0], record['cells'][2]
  assert (dense['experts'], routed['experts'], routed['experts_per_token']) == (0, 4, 2)
  assert record['budget'] == dense['active_params'] == routed['active_params'] < routed['params']
  said = (
    '4 experts, 2 a token, 256 tokens of synthetic(rows=64), equal active parameters '
    f'({record["budget"]:,}), mixtures of {routed["params"]:,} in all, 2 paired seeds'
  )
  assert said in (workdir / 'report.md').read_text()
  with open(workdir / 'summary.csv') as f:
    table = {row['variant']: row for row in csv.DictReader(f)}
  assert table['topk/capacity']['experts'] == '4'
