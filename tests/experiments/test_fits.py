"""fits: the search, and one small memory from the command line."""

from __future__ import annotations

import json

import pytest

from tests import processes
from transformer.measure import footprint


@pytest.mark.parametrize('growth', [lambda n: n, lambda n: n * n + 5, lambda n: 3 * n + n**2 / 7])
@pytest.mark.parametrize('answer', [0, 1, 2, 7, 8, 9, 100, 511, 512])
def test_the_widest_that_fits_is_found_in_few_steps(growth, answer: int) -> None:
  calls = []

  def peak(n: int) -> float:
    calls.append(n)
    return growth(n)

  memory = growth(answer) + 0.1 if answer else growth(1) - 0.1
  assert footprint.widest(peak, memory, 512) == answer
  assert len(calls) == len(set(calls)) <= 12


@pytest.mark.exhaustive
def test_more_fits_when_more_is_computed_again() -> None:
  shape = ('--model.num_layers=2', '--model.vocab_size=64', '--data.seq_len=64')
  ran = processes.run(
    'experiments.fits',
    *(*shape, '--data.batch_size=8', '--gib=0.02', '--remat=none,full', '--accumulate=1'),
    '--json',
  )
  assert ran.returncode == 0, ran.stderr
  none, full = map(json.loads, ran.stdout.splitlines())
  assert (none['remat'], full['remat']) == ('none', 'full')
  assert 0 < none['peak_gib'] <= 0.02 and full['peak_gib'] <= 0.02
  assert full['params'] >= none['params'] > 0


def test_what_is_no_way_to_compute_again_is_refused() -> None:
  ran = processes.run('experiments.fits', '--remat=some')
  assert (ran.returncode, ran.stderr) == (2, 'error: --remat=some: choose from none, full, dots\n')
