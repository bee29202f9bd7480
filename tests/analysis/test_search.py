"""A search in a report: its course, its best, what decides; a pruned cell is no unfinished one."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from transformer.analysis import facts, next_step, plots, report, search
from transformer.analysis.load import load

from .conftest import write_folder


@pytest.fixture
def folder(tmp_path):
  """Four trials: two done, one pruned, one that could not run."""
  path = write_folder(
    tmp_path / 'run', variants={'relu': (0.0, 0.0), 'gelu': (-0.04, 0.0)}, seeds=1, failed=()
  )
  for cell in path.glob('cells/gelu*'):
    (cell / 'done.json').unlink()
    (cell / 'pruned.json').write_text(json.dumps({'step': 100, 'loss': 4.1}))
  told = [
    {'number': 0, 'state': 'complete', 'loss': 3.9, 'params': {'ffn.ratio': 4}},
    {'number': 1, 'state': 'pruned', 'loss': 4.1, 'params': {'ffn.ratio': 1}},
    {'number': 2, 'state': 'complete', 'loss': 3.7, 'params': {'ffn.ratio': 8}},
    {'number': 3, 'state': 'fail', 'loss': None, 'params': {'ffn.ratio': 3}},
  ]
  asked = {'space': 'ffn.ratio=int(1,8)', 'sampler': 'tpe', 'prune': 'asha', 'trials': 4}
  importance = {'ffn.ratio': 0.7, 'optim.learning_rate': 0.3}
  (path / 'search.json').write_text(json.dumps({**asked, 'importance': importance, 'told': told}))
  return path


def test_the_course_of_a_search_is_drawn_and_its_best_is_named(folder):
  results = load(folder)
  assert [(t.number, t.state) for t in search.trials(results)] == [
    (0, 'complete'),
    (1, 'pruned'),
    (2, 'complete'),
  ]
  assert search.best(results) == 'Best of 2: trial 2, 3.700 at ffn.ratio 8.'
  first = plots.draw(results)[0]
  assert first.name == 'search'
  assert '4 trials by tpe, pruned by asha (2 complete, 1 pruned, 1 fail)' in first.caption
  assert 'PED-ANOVA' in first.caption
  console = Console(file=io.StringIO(), width=200)
  report.console(results, console)
  assert 'Best of 2: trial 2, 3.700 at ffn.ratio 8.' in console.file.getvalue()


def test_a_pruned_cell_is_neither_unfinished_nor_to_be_finished(folder):
  results = load(folder)
  assert {c.variant: c.state for c in results.cells} == {'relu': 'done', 'gelu': 'pruned'}
  assert facts.unfinished(results) == []
  assert next_step.suggest(results) == []
