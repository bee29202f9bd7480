"""experiments.replay from the command line, on a run that Adam divided 0 by 0 in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import TINY, flags, run

# Without eps, Adam divides 0 by 0 where a gradient is 0: in units that relu leaves off for all four
# tokens of the batch. So forward pass and gradients are finite, and the update is not.
SETTINGS = TINY | {
  'ffn.activation': 'relu',
  'data.seq_len': 4,
  'data.batch_size': 1,
  'optim.name': 'adamw(eps=0.0)',
  'train.steps': 6,
  'train.log_every': 2,
  'train.max_bad_steps': 3,
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp('diverged') / 'run'
  assert run('experiments.train', f'--workdir={folder}', *flags(SETTINGS)).returncode == 1
  return folder


def _replay(workdir: Path, *args: str):
  return run('experiments.replay', f'--cell={workdir}', *args)


def test_it_names_the_first_tensor_that_is_not_finite(workdir: Path) -> None:
  ran = _replay(workdir, '--json')
  assert ran.returncode == 0, ran.stderr
  told = json.loads(ran.stdout)
  first = told['first']
  assert (first['stage'], first['finite'], first['largest']) == ('update', False, None)
  assert first['name'].startswith('ffn/')
  index = told['tensors'].index(first)
  assert all(t['finite'] for t in told['tensors'][:index])
  assert told['step'] == 1
  shown = _replay(workdir, '--step=1').stdout
  label = f'{first["name"]}, layer {first["layer"]}'
  assert shown.splitlines()[0] == (f'Step 1: the first tensor that is not finite: update: {label}')
  assert sum(line.split()[-1:] == ['NO'] for line in shown.splitlines()) >= 1


@pytest.mark.exhaustive
def test_a_good_step_shows_its_largest_values(workdir: Path, tmp_path: Path) -> None:
  args = flags(SETTINGS | {'optim.name': 'adamw', 'train.steps': 2})
  assert run('experiments.train', f'--workdir={tmp_path / "good"}', *args).returncode == 0
  shown = _replay(tmp_path / 'good', '--step=2').stdout
  assert shown.startswith('Step 2: every tensor is finite.')
  assert 'NO' not in shown
  assert 'new weights' in shown


def test_what_cannot_be_repeated_is_told_in_one_line(workdir: Path, tmp_path: Path) -> None:
  def refused(folder: Path, *args: str) -> str:
    ran = _replay(folder, *args)
    assert (ran.returncode, ran.stdout) == (2, '')
    return ran.stderr

  assert refused(workdir, '--step=7') == 'error: --step=7: the run has steps 1 to 3\n'
  assert refused(tmp_path) == (
    f'error: --cell={tmp_path}: no config.json in it; give the folder of a run\n'
  )
  (cell,) = (workdir / 'cells').iterdir()
  (tmp_path / 'config.json').write_text((cell / 'config.json').read_text())
  assert refused(tmp_path) == (
    f'error: --step=0: {tmp_path} has no bad step; name a step, as in --step=100\n'
  )
