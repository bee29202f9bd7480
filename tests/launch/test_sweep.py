"""From the command line to cells, to a cluster's scripts, to a report by what was swept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import space, sweep
from tests import processes
from transformer.analysis import next_step
from transformer.config import Config, config_hash
from transformer.errors import UserError

TINY = processes.flags(processes.TINY | {'train.steps': 4, 'train.eval_every': 2})


def _said(*args: str) -> str:
  ended = processes.run('launch.sweep', *args)
  assert (ended.returncode, ended.stderr) == (0, '')
  return ended.stdout


def _error(*args: str) -> str:
  ended = processes.run('launch.sweep', *args)
  assert (ended.returncode, ended.stdout) == (2, '')
  (line,) = ended.stderr.splitlines()
  return line


def test_cells_are_named_by_their_values_and_points_of_one_run_are_one_cell() -> None:
  points = space.points('moe.experts=0,4; moe.router=topk,hash; seed=0..1')
  cells = sweep.cells_of(Config(), points)
  assert [c.name for c in cells] == [
    'experts=0-topk-seed0',  # of a dense model the router is idle
    'experts=0-topk-seed1',
    'experts=4-topk-seed0',
    'experts=4-topk-seed1',
    'experts=4-hash-seed0',
    'experts=4-hash-seed1',
  ]
  assert {c.variant for c in cells} == {'0, topk', '4, topk', '4, hash'}
  assert len({config_hash(c.config) for c in cells}) == 6
  assert [c.name for c in sweep.cells_of(Config(), space.points('seed=0..1'))] == ['seed0', 'seed1']


def test_a_point_that_cannot_run_is_named_before_any_cell_is_made() -> None:
  with pytest.raises(UserError) as e:
    sweep.cells_of(Config(), space.points('model.num_heads=4,5; seed=0'))
  assert str(e.value).startswith('--model.num_heads=5: does not divide --model.d_model=256; ')
  assert str(e.value).endswith('(at model.num_heads=5; seed=0; --where leaves points out)')


def test_a_dry_run_shows_cells_and_cost_without_jax(tmp_path: Path) -> None:
  args = (
    '--grid=ffn.activation=relu,gelu; ffn.ratio=2,4; seed=0..2',
    '--where=ffn.ratio<4 or ffn.activation=="gelu"',
    f'--workdir={tmp_path / "x"}',
    '--dry_run',
  )
  said = _said(*args, *TINY)
  rows = [line.split() for line in said.splitlines() if line.strip().startswith(('relu', 'gelu'))]
  assert [row[:3] for row in rows] == [
    ['relu,', '2', '3'],
    ['gelu,', '2', '3'],
    ['gelu,', '4', '3'],
  ]
  assert '9 cells, ' in said and 'nothing was run' in said
  assert not (tmp_path / 'x').exists()
  code = f'import sys; sys.argv[1:] = {[*args, *TINY]!r}\n' + (
    'import runpy\ntry: runpy.run_module("launch.sweep", run_name="__main__")\n'
    'except SystemExit: print("jax" in sys.modules, "optuna" in sys.modules)'
  )
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert ended.stdout.splitlines()[-1] == 'False False'


def test_a_dry_run_of_a_search_shows_its_corners(tmp_path: Path) -> None:
  space = '--search=ffn.ratio=int(1,4); ffn.activation=choice(relu,gelu)'
  said = _said(space, '--trials=5', '--prune=asha', f'--workdir={tmp_path}', '--dry_run', *TINY)
  assert '1, relu' in said and '4, gelu' in said
  assert '5 trials between these corners, ' in said


@pytest.mark.parametrize(
  ('args', 'said'),
  [
    ((), "--grid=: names no setting; expected settings and their values, as in 'ffn.activation"),
    (('--grid=seed=0,1', '--seed=3'), '--seed: is swept; leave it out, or out of the sweep'),
    (('--grid=seed=0', '--on=slum'), '--on=slum: no such engine; did you mean slurm?'),
    (('--script=no.such',), '--script=no.such: no such module; try --script=experiments.train'),
    (('--script=experiments.report',), '--script=experiments.report: has no run(cells, by, sea'),
    (('--search=ffn.ratio=int(1,2)', '--grid=seed=0'), '--grid: is not for --search; leave one'),
    (('--search=ffn.ratio=int(1,2)', '--sampler=best'), '--sampler=best: choose from tpe, random'),
    (('--search=seed=int(1,2)',), '--search=seed=int(1,2): the best of many seeds is luck; '),
    (
      ('--search=ffn.ratio=int(1,2)', '--prune=asha', '--train.eval_every=400'),
      '--prune=asha: cells are judged at their evaluations, and have one, at the end',
    ),
  ],
)
def test_what_is_wrong_is_told_in_a_line(args: tuple[str, ...], said: str) -> None:
  assert _error(*args).startswith(f'error: {said}')


def test_a_sweep_runs_reports_by_what_varies_and_goes_on(tmp_path: Path) -> None:
  grid, workdir = '--grid=ffn.activation=relu,gelu; seed=0..1', f'--workdir={tmp_path}'
  args = (grid, workdir, '--launch.workers=1', *TINY)
  ended = processes.run('launch.sweep', *args)
  assert ended.returncode == 0, ended.stderr
  told = json.loads((tmp_path / 'experiment.json').read_text())
  assert (told['by'], len(told['cells'])) == ('ffn.activation', 4)
  assert told['command'].startswith("python -m launch.sweep '--grid=ffn.activation=relu,gelu; seed")
  summary = (tmp_path / 'summary.csv').read_text().splitlines()
  assert {line.partition(',')[0] for line in summary} == {'variant', 'relu', 'gelu'}
  done = {p: p.stat().st_mtime_ns for p in tmp_path.glob('cells/*/done.json')}
  assert len(done) == 4
  again = processes.run('launch.sweep', *args)
  assert again.returncode == 0
  assert {p: p.stat().st_mtime_ns for p in tmp_path.glob('cells/*/done.json')} == done
  status = processes.run('launch.status', workdir, '--json')
  assert json.loads(status.stdout)['counts']['done'] == 4
  other = processes.run('launch.sweep', '--grid=ffn.ratio=2,4', workdir, *TINY)
  assert other.returncode == 2
  assert (
    'holds runs of another configuration (what is swept is ffn.activation there, ffn.ratio'
    in (other.stderr)
  )


def test_more_seeds_are_asked_for_in_the_grid() -> None:
  command = "python -m launch.sweep '--grid=ffn.ratio=2,4; seed=0..1' --workdir=x"
  more = "python -m launch.sweep '--grid=ffn.ratio=2,4; seed=0..7' --workdir=x"
  assert next_step._with_seeds(command, '0..7') == more
  plain = 'python -m experiments.activations --seeds=0..7'
  assert next_step._with_seeds('python -m experiments.activations', '0..7') == plain
