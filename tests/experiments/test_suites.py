"""The page of a suite of measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import suites
from transformer import count
from transformer.errors import UserError
from transformer.measure.measures import WHATS

CEILINGS = {
  'matmul_gflops': {'float32->float32': {'1024x1024x1024': 100.0}, 'bfloat16->float32': {}},
  'memory_gb_per_s': 40.0,
  'device': '1 x cpu',
  'cpu': 'Some CPU',
  'cores': 2,
  'versions': {'jax': '1.2'},
}


@pytest.mark.parametrize('name', suites.SUITES)
def test_every_row_can_run(name: str) -> None:
  """Its settings go together, and a mixture's twin has the same active FLOPs but the router's."""
  titles = [row.title for row in suites.SUITES[name]]
  assert len(set(titles)) == len(titles)
  for row in suites.SUITES[name]:
    ours, theirs = row.configs()
    assert row.what in WHATS
    if theirs:
      mine, twins = (count.flops_by_part(c)['ffn'] for c in (ours, theirs))
      assert twins <= mine < 1.05 * twins, row.title


def test_a_row_that_fails_leaves_the_others(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  rows = tuple(
    suites.Row(title, what) for title, what in (('a', 'train'), ('b', 'start'), ('c', 'train'))
  )
  monkeypatch.setitem(suites.SUITES, 'cpu', rows)
  path, seen = tmp_path / 'new' / 'page.md', []

  def measure(row: suites.Row) -> dict:
    seen.append(path.read_text() if path.exists() else '')
    if row.title == 'c':
      raise UserError('no room')
    told = {'what': row.what, 'first_step_s': 1.5, 'warm': {'data_s': 0.5}}
    return told if row.what == 'start' else {'what': 'train', 'tokens_per_s': 12345.6, 'mfu': 0.25}

  found = suites.run('cpu', measure, CEILINGS, path, 'python -m x')
  assert [facts.get('failed') for facts in found] == [None, None, 'no room']
  assert '| a |' not in seen[0] and '| a |' in seen[1]  # written row by row
  page = path.read_text()
  assert '`python -m x`' in page and 'Some CPU, 2 cores; jax 1.2.' in page
  assert '| float32 → float32 | 100 |\n' in page
  assert '| a | 12,346 |  |  | 0.25 |' in page
  assert '- b: s to the first step, warm 1.5; in stages data_s 0.5\n' in page
  assert '- c: failed: no room\n' in page
  assert '- b: `--preset=bench --what=start`\n' in page
