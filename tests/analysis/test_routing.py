"""Routing in the report: health, loads, what experts like, and wins that look ahead."""

import csv
import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from transformer.analysis import (
  experts,
  loads,
  method,
  page,
  plots,
  report,
  routing,
  table,
  verdict,
)
from transformer.analysis.grid import grid
from transformer.analysis.load import load
from transformer.analysis.results import Results
from transformer.analysis.theme import LIGHT

from .conftest import STEPS, write_folder

ROUTERS = {'topk': (0.0, 0.0), 'switch': (0.05, 0.004), 'expert_choice': (-0.3, 0.004)}
CHOSEN = [{'id': 7, 'text': ' the', 'count': 40, 'lift': 3.96}, {'id': 9, 'count': 12, 'lift': 2.0}]


def write(path, variants=ROUTERS, layers=2, many=4, ahead=('expert_choice',), **options):
  """A folder whose cells have `many` experts in each layer, evenly used at last but for seed 0."""
  shapes = {v: {'active_params': 200_000, 'looks_ahead': v in ahead} for v in variants}
  for v in variants:
    shapes[v] |= {'experts': 0 if v == 'dense' else many, 'experts_per_token': 2}
  told = dict(variable='moe.router', baseline='topk', settings={'moe.experts': many}, shapes=shapes)
  folder = write_folder(path, variants, name='moe_routing', **told | options)
  for cell in folder.glob('cells/*'):
    variant, seed = cell.name.rpartition('-')[0].split('-seed')
    if variant == 'dense' or not (cell / 'done.json').exists():
      continue
    rng = np.random.default_rng(len(variant) + 100 * int(seed))
    favour = rng.normal(0, 1, (layers, many))
    rows = [json.loads(line) for line in (cell / 'metrics.jsonl').read_text().splitlines()]
    rows = [row | _routed('router', row['step'], favour, variant) for row in rows]
    rows += [
      {'step': s} | _routed('eval_router', s, favour, variant) for s in range(100, STEPS + 1, 100)
    ]
    (cell / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    liked = {'share': 1 / many, 'likes': CHOSEN}
    told = [{'layer': layer, 'experts': [liked] * many} for layer in range(layers)]
    (cell / 'experts.json').write_text(json.dumps({'least': 10, 'layers': told}))
  return folder


def _routed(kind: str, step: int, favour_LE, variant: str) -> dict:
  """Loads that even out; expert 0 of layer 0 gets nothing before step 50."""
  load_LE = np.exp(favour_LE * np.exp(-step / 150))
  load_LE[0, 0] *= step >= 50
  load_LE /= load_LE.sum(axis=1, keepdims=True)
  row, many = {}, load_LE.shape[1]
  for layer, load_E in enumerate(load_LE):
    row |= {f'{kind}/load/{layer}/{e}': float(x) for e, x in enumerate(load_E)}
    found = {
      'max_violation': load_E.max() * many - 1,
      'load_cv': load_E.std() * many,
      'dead_experts': float((load_E == 0).sum()),
      'dropped': 0.1 * math.exp(-step / 100) * (variant == 'switch'),
    }
    if variant != 'hash':
      found |= {'entropy': (0.5 + 0.1 * layer) * math.log(many), 'log_z': 1.5}
    row |= {f'{kind}/{name}/{layer}': float(x) for name, x in found.items()}
  return row


@pytest.fixture(scope='module')
def found(tmp_path_factory) -> Results:
  return load(write(tmp_path_factory.mktemp('runs') / 'moe', {**ROUTERS, 'hash': (0.02, 0.03),
                                                              'dense': (0.1, 0.0)}))  # fmt: skip


def test_the_table_has_a_row_for_each_variant_with_experts(found):
  headings, rows = routing.table(found)
  assert headings == [
    *('router', 'experts', 'max violation', 'load cv', 'dead experts', 'dropped'),
    *('entropy, nats', 'entropy / log E', 'log Z'),
  ]
  assert [row[0] for row in rows] == ['expert_choice †', 'topk', 'hash', 'switch']
  by_name = {row[0]: row for row in rows}
  assert by_name['topk'][4:] == ['0', '0.0 %', '0.762', '55.0 %', '1.5']  # .55 log 4
  assert by_name['hash'][4:] == ['0', '0.0 %', '–', '–', '–']
  assert by_name['switch'][5] == '0.2 %'  # .1 e^−4
  cells = found.variants[0].done
  last = [_routed('x', STEPS, _favour(c.seed), 'topk') for c in cells]
  expected = np.mean([[row[f'x/max_violation/{layer}'] for layer in (0, 1)] for row in last])
  assert float(by_name['topk'][2]) == pytest.approx(expected, rel=5e-3)


def _favour(seed: int) -> np.ndarray:
  return np.random.default_rng(len('topk') + 100 * seed).normal(0, 1, (2, 4))


def test_courses_are_means_over_layers_with_a_band_over_seeds(found):
  lines = routing.courses(found)
  assert {name: [c.variant.name for c in found] for name, found in lines.items()} == {
    'entropy': ['expert_choice', 'topk', 'switch'],
    'max_violation': ['expert_choice', 'topk', 'hash', 'switch'],
    'dropped': ['expert_choice', 'topk', 'hash', 'switch'],
  }
  (entropy,) = (c for c in lines['entropy'] if c.variant.name == 'topk')
  assert entropy.steps == list(range(10, STEPS + 1, 10))
  assert entropy.mean == pytest.approx(0.55) and entropy.points[-1] == (STEPS, pytest.approx(0.55))
  (violation,) = (c for c in lines['max_violation'] if c.variant.name == 'topk')
  assert np.all(violation.low < violation.mean) and np.all(violation.mean < violation.high)


@pytest.mark.filterwarnings('error')
def test_experts_used_evenly_all_the_time_have_an_axis(tmp_path):
  path = write(tmp_path / 'runs', {'hash': (0.0, 0.0)}, baseline='hash', seeds=1)
  (rows,) = path.glob('cells/*/metrics.jsonl')
  rows.write_text(re.sub(r'(/max_violation/\d": )[^,}]+', r'\g<1>0.0', rows.read_text()))
  figure, even = Figure(), load(path)
  routing.draw(figure, even, LIGHT)
  (ax,) = figure.axes
  assert routing.courses(even)['max_violation'][0].high.max() == 0
  assert ax.get_ylim() == (0, 0.01)


def test_loads_are_relative_to_the_even_share(found):
  first = next(x for x in loads.loads(found) if x.label == 'topk')
  assert (first.seed, first.layers, first.relative_RT.shape) == (0, {0: 4, 1: 4}, (8, 40))
  assert first.relative_RT.reshape(2, 4, 40).mean(axis=1) == pytest.approx(1.0)
  assert np.all(first.relative_RT[0, :4] == 0) and np.all(first.relative_RT[:, 4:] > 0)


def test_what_experts_like_is_told_by_the_first_seed(found):
  best, *_ = experts.likes(found)
  assert (best.label, best.seed, best.left, len(best.rows)) == ('expert_choice †', 0, 0, 8)
  assert best.rows[5] == ('1', '1', '25.0 %', '3.96 ×', ('␣the', '#9'))
  assert experts.caption(found).endswith(
    'of held-out tokens seen at least 10 times, after the last step, by the first finished seed.'
  )
  assert [x.label for x in experts.likes(found)] == ['expert_choice †', 'topk', 'hash', 'switch']


def test_of_many_experts_some_are_shown_and_the_others_counted(tmp_path):
  path = write(tmp_path / 'runs', {'topk': (0.0, 0.0)}, layers=6, many=20, seeds=1)
  (only,) = experts.likes(load(path))
  assert {row[0] for row in only.rows} == {'0', '2', '4'} and len(only.rows) == 3 * 16
  assert experts.title(only) == 'topk, seed 0; 72 more experts in its experts.json'


def test_a_win_of_what_looks_ahead_is_void(found):
  by_name = {v.name: v for v in found.variants}
  assert by_name['expert_choice'].difference.verdict == 'void'
  assert by_name['switch'].difference.verdict == 'worse'
  first, *details = verdict.sentences(found)
  assert 'better' not in first and ' beat' not in first
  assert '; `expert_choice †` (−0.300 ± 0.007) is void: the lower loss looks ahead.' in first
  assert details[0] == (
    '† Routing looks ahead in `expert_choice †`: which experts a token meets depends on tokens '
    'behind it, which are to be predicted. A win of that is void.'
  )
  assert any(
    d.startswith('The lowest mean besides `topk` and what looks ahead is') for d in details
  )
  assert all('`expert_choice`' not in sentence for sentence in (first, *details))
  assert any(d.startswith('Every variant that does not look ahead is better') for d in details)
  assert any('void where the lower loss' in line for line in method.numbers(found))
  (row, *_) = csv.DictReader(io.StringIO(report.summary(found)))
  assert (row['variant'], row['looks_ahead'], row['verdict']) == ('expert_choice', 'True', 'void')


def test_losing_to_a_baseline_that_looks_ahead_is_void_as_well(tmp_path):
  path = write(tmp_path / 'runs', baseline='expert_choice')
  by_name = {v.name: v for v in load(path).variants}
  assert by_name['topk'].difference.verdict == by_name['switch'].difference.verdict == 'void'
  plain = write(tmp_path / 'plain', baseline='expert_choice', ahead=())
  assert {v.difference.verdict for v in load(plain).variants if v.difference} == {'worse'}


def test_without_a_baseline_the_lowest_is_one_that_does_not_look_ahead(tmp_path):
  told = verdict.sentences(load(write(tmp_path / 'runs', baseline='')))
  assert 'besides what looks ahead, the lowest mean held-out loss is' in told[0]
  assert told[0].endswith('by `topk`.')
  alone = write(tmp_path / 'alone', {'expert_choice': (-0.3, 0.0)}, baseline='')
  told = verdict.sentences(load(alone))
  assert told[1].startswith('† Routing') and 'better' not in ' '.join(told)


def test_active_parameters_stand_beside_all_and_the_sentence_tells_experts(found, tmp_path):
  headings = [c.heading for c in table.columns(found)]
  assert headings[1:3] == ['parameters', 'active']
  assert table.columns(found)[2].show(found.variants[0]) == '200,000'
  assert 'context 64, 4 experts, 2 a token, ' in verdict.sentences(found)[0]
  old = load(write_folder(tmp_path / 'old'))  # of a time before there were experts
  assert 'active' not in [c.heading for c in table.columns(old)]
  assert 'experts' not in report.markdown(old, []) + page.html(old, [])


def test_every_form_of_the_report_tells_them(found):
  pictures = plots.draw(dataclasses.replace(found, variants=found.variants[:1]))
  assert [p.name for p in pictures] == ['loss', 'routing', 'load']
  assert {p.name for p in pictures} <= set(plots.NAMES)
  text = page.html(found, pictures)
  assert text.count('<h2>Experts</h2>') == 1 and text.count('<figure>') == 3
  assert '<details open><summary>expert_choice †, seed 0</summary>' in text
  assert '<code>␣the</code> <code>#9</code>' in text
  text = report.markdown(found, pictures)
  assert text.index('## Experts') < text.index('![routing]') < text.index('### topk, seed 0')
  assert '| 1 | 1 | 25.0 % | 3.96 × | `␣the` `#9` |' in text


def test_a_running_cell_is_drawn_and_one_without_experts_has_no_section(tmp_path):
  folder = write(tmp_path / 'runs', seeds=1)
  for cell in folder.glob('cells/*'):
    (cell / 'done.json').unlink()
  running = load(folder)
  assert len(loads.loads(running)) == 3 and len(routing.courses(running)) == 3
  assert routing.table(running)[1] == [] and experts.likes(running) == []


def test_a_few_steps_without_a_row_of_training_have_their_table(tmp_path):
  folder = write(tmp_path / 'runs', {'topk': (0.0, 0.0)}, seeds=1)
  (path,) = folder.glob('cells/*/metrics.jsonl')
  lines = path.read_text().splitlines()
  path.write_text(lines[-1] + '\n')
  found = load(folder)
  assert routing.table(found)[1][0][1] == '4'
  assert (routing.courses(found), loads.loads(found)) == ({}, [])


def test_a_line_of_a_grid_carries_the_mark(tmp_path):
  folders = [
    write(tmp_path / f'{rate}', settings={'moe.experts': 4, 'optim.learning_rate': rate})
    for rate in (0.004, 0.008)
  ]
  found = load(folders, 'moe.router,optim.learning_rate')
  assert {line.name for line in grid(found).lines} == {'topk', 'switch', 'expert_choice †'}
  assert '`expert_choice`' not in ' '.join(verdict.sentences(found))
