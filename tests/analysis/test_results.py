"""Reading run folders: whole, half finished, broken."""

import json
import re

import pytest

from transformer.analysis import load as results
from transformer.errors import UserError


def test_a_whole_folder(run_folder):
  found = results.load(run_folder())
  assert [v.name for v in found.variants][:2] == ['relu', 'gelu']
  assert [v.name for v in found.ranked] == [
    'gelu', 'swiglu', 'relu2', 'geglu', 'silu', 'relu', 'identity',
  ]  # fmt: skip
  gelu = found.variants[1]
  assert len(gelu.done) == 4 and gelu.asked('d_ff') == 384
  assert gelu.difference.sample.mean == pytest.approx(-0.044)
  assert gelu.difference.verdict == 'better'
  assert found.variants[0].difference is None
  assert found.leaders[0] == 'gelu'
  assert found.notes == ()
  assert found.setting('optim.learning_rate') == 0.008
  assert found.settings('model.num_layers') == (2,)
  steps, losses = gelu.cells[0].series('eval/loss')
  assert steps == [100, 200, 300, 400] and losses[-1] == pytest.approx(
    gelu.cells[0].result['eval/loss'], abs=0.001
  )


def test_a_half_finished_folder(run_folder):
  found = results.load(
    run_folder(failed=('silu-seed1',), unfinished=('gelu-seed3',), waiting=('identity-seed0',))
  )
  states = {c.name: c.state for c in found.cells if c.state != 'done'}
  assert states == {
    'silu-seed1': 'failed',
    'gelu-seed3': 'unfinished',
    'identity-seed0': 'waiting',
  }
  assert found.variants[1].difference.seeds == (0, 1, 2)
  assert found.notes == ()  # the half-written last line of metrics.jsonl is no news


def test_numbers_order_the_variants(run_folder):
  widths = {'16': (-0.03, 0.005), '0.25': (0.1, 0.005), '2': (0, 0)}
  found = results.load(run_folder(variants=widths, baseline='2', name='ffn_width'))
  assert found.numeric
  assert [v.name for v in found.ranked] == ['0.25', '2', '16']


def test_no_experiment_is_a_user_error(tmp_path):
  with pytest.raises(UserError) as error:
    results.load(tmp_path)
  assert str(error.value) == (
    f'{tmp_path}/experiment.json: no such file; give the folder that an experiment wrote, '
    'runs/<experiment>'
  )


@pytest.mark.parametrize(
  ('text', 'wrong'),
  [
    ('{"name": "x", "cel', 'cannot be read'),
    ('[]', 'lists no cells'),
    ('{"cells": [{"name": "a", "variant": "a"}]}', 'a cell without folder, seed'),
  ],
)
def test_a_broken_experiment_is_a_user_error(tmp_path, text, wrong):
  (tmp_path / 'experiment.json').write_text(text)
  with pytest.raises(UserError, match=wrong) as error:
    results.load(tmp_path)
  assert str(tmp_path / 'experiment.json') in str(error.value)


def _cell_file(folder, cell, name):
  (path,) = folder.glob(f'cells/{cell}-????????')
  return path / name


def test_broken_cell_files_are_left_out_and_noted(run_folder):
  folder = run_folder()
  _cell_file(folder, 'gelu-seed0', 'done.json').write_text('{"step": 4')
  metrics = _cell_file(folder, 'gelu-seed1', 'metrics.jsonl')
  metrics.write_text(metrics.read_text().replace('{"step": 20,', '{"ste', 1))
  found = results.load(folder)
  assert len(found.variants[1].done) == 3
  assert len(found.notes) == 2
  assert re.search(r'gelu-seed0-\w{8}/done.json left out', found.notes[0])
  assert 'metrics.jsonl line 2 left out' in found.notes[1]


def test_a_loss_that_is_not_finite_is_a_failure(run_folder):
  folder = run_folder()
  done = _cell_file(folder, 'gelu-seed0', 'done.json')
  done.write_text(json.dumps(json.loads(done.read_text()) | {'eval/loss': float('nan')}))
  cell = next(c for c in results.load(folder).cells if c.name == 'gelu-seed0')
  assert cell.state == 'failed'
  assert cell.failure == {'cause': 'non-finite', 'message': 'held-out loss is nan'}


def test_cells_of_other_code_are_told(run_folder):
  folder = run_folder()
  done = _cell_file(folder, 'gelu-seed0', 'done.json')
  done.write_text(json.dumps(json.loads(done.read_text()) | {'code': 'feedbeef99'}))
  assert results.load(folder).notes == (
    'finished cells come from 2 versions of the code (27 by c0dec0de, 1 by feedbeef); '
    'compare with care',
  )


def test_cells_of_a_users_own_file_are_compared_with_their_like(run_folder):
  folder = run_folder()
  for seed in range(4):
    for name, extra in (
      ('done', {'code': '0wn0' * 4}),
      ('provenance', {'plugins': {'lab.py': '1'}}),
    ):
      path = _cell_file(folder, f'gelu-seed{seed}', f'{name}.json')
      path.write_text(json.dumps(json.loads(path.read_text()) | extra))
  assert results.load(folder).notes == ()
  path = _cell_file(folder, 'gelu-seed0', 'done.json')
  path.write_text(json.dumps(json.loads(path.read_text()) | {'code': 'feedbeef99'}))
  assert '(3 by 0wn00wn0, 1 by feedbeef)' in results.load(folder).notes[0]
