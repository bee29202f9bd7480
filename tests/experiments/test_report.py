"""The report's script: several folders, groups, exports, and one line for what is wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.analysis.conftest import write_folder
from tests.processes import run

BY = '--by=ffn.activation,optim.learning_rate'


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
  root = tmp_path_factory.mktemp('runs')
  for name, rate in (('a', 0.004), ('b', 0.008)):
    variants = {'relu': (0.0, 0.0), 'gelu': (-0.04, 0.004)}
    write_folder(root / name, variants, settings={'optim.learning_rate': rate})
  return root


def test_folders_become_one_report_with_its_exports(runs: Path, tmp_path: Path) -> None:
  both, out = f'--workdir={runs / "a"},{runs / "b"}', tmp_path / 'out'
  ended = run('experiments.report', both, BY, '--baseline=relu,0.008', f'--out={out}')
  assert (ended.returncode, ended.stderr) == (0, '')
  assert f'Report: {out / "report.html"}' in ended.stdout
  heading = next(line for line in ended.stdout.splitlines() if 'learning_rate' in line)
  assert heading.split()[:2] == ['activation', 'learning_rate']
  assert {p.name for p in out.iterdir()} == {
    'report.html', 'report.md', 'summary.csv', 'table.tex', 'plots',
  }  # fmt: skip
  rows = list(csv.DictReader((out / 'summary.csv').open()))
  assert {(r['ffn.activation'], r['optim.learning_rate']) for r in rows} == {
    (name, rate) for name in ('relu', 'gelu') for rate in ('0.004', '0.008')
  }
  assert {r['baseline'] for r in rows} == {'relu, 0.008'}
  tex = (out / 'table.tex').read_text()
  assert r'activation & learning\_rate & parameters & d\_ff' in tex
  assert not (runs / 'a' / 'report.html').exists()


def test_where_a_report_goes_unless_told(runs: Path) -> None:
  one = run('experiments.report', f'--workdir={runs / "a"}', BY)
  assert one.returncode == 0 and (runs / 'a' / 'table.tex').exists()
  two = run('experiments.report', f'--workdir={runs / "b"},{runs / "a"}', BY)
  assert two.returncode == 0 and (runs / 'merged' / 'report.html').exists()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--workdir=,'], '--workdir=: is empty; name folders, as in --workdir=runs/a,runs/b'),
    (['--workdir={0}/c'], '{0}/c/experiment.json: no such file; give the folder that an '
     'experiment wrote, runs/<experiment>'),
    (['--workdir={0}/a', '--by=ffn.ratoi'],
     "--by=ffn.ratoi: no setting 'ffn.ratoi'; did you mean ffn.ratio?"),
    (['--workdir={0}/a,{0}/b'], '--workdir: {0}/a and {0}/b both hold relu with seed 0, but '
     'optim.learning_rate differs; compare by it, as in --by=optim.learning_rate'),
    (['--workdir={0}/a', '--baseline=rleu'],
     "--baseline=rleu: no such group; did you mean 'relu'?"),
    (['--workdir={0}/a', '--out={0}/a/experiment.json'], '{0}/a/experiment.json/plots: '
     'Not a directory'),
    (['--bye=x'], '--bye: no such flag; did you mean by?'),
  ],
)  # fmt: skip
def test_what_is_wrong_ends_in_one_line(runs: Path, flags: list[str], message: str) -> None:
  ended = run('experiments.report', *(flag.format(runs) for flag in flags))
  assert ended.returncode == 2
  assert ended.stderr == f'error: {message.format(runs)}\n'
