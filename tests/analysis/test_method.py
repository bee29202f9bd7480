"""What a report says was held equal, what gave way for it, and the shapes in its table."""

import io

import pytest
from rich.console import Console

from transformer.analysis import method, plots, report, table
from transformer.analysis.load import load

WIDTHS = dict(
  variants={'1': (0.04, 0.005), '2': (0, 0), '4': (-0.02, 0.005)},
  baseline='2',
  name='ffn_width',
  variable='ffn.ratio',
)


@pytest.mark.parametrize(
  ('told', 'sentence'),
  [
    ({'absorb': 'd_ff'}, 'Variants have equal parameters: the hidden width d_ff takes up the '
     'difference.'),
    ({'absorb': 'd_model'}, 'Variants have equal parameters: d_model takes up the difference, and '
     'd_ff (without an FFN the heads) what even widths leave of it.'),
    ({'absorb': 'depth', 'match': 'flops'}, 'Variants have equal training FLOPs per token: the '
     'number of layers takes up the difference, and d_model, then d_ff, what whole layers leave of '
     'it.'),
    ({}, 'Variants have equal parameters.'),
    ({'match': 'none', 'absorb': ''}, 'Variants have the same parameters and FLOPs.'),
  ],
)  # fmt: skip
def test_the_protocol_says_what_gave_way(run_folder, told, sentence):
  assert method.protocol(load(run_folder(**told)))[0] == sentence


def test_without_a_budget_captions_say_how_far_apart_variants_are(run_folder):
  found = load(run_folder(match='none', **WIDTHS))
  told = 'Not matched: 0.21 M to 0.32 M parameters and 1.26 M to 1.92 M FLOPs per token.'
  assert method.protocol(found)[0] == told
  captions = {p.name: p.caption for p in plots.draw(found)}
  assert captions['differences'].endswith(told) and captions['variable'].endswith(told)
  matched = [p.caption for p in plots.draw(load(run_folder(**WIDTHS)))]
  assert not any('Not matched' in caption for caption in matched)


def _shown(found) -> dict[str, dict[str, str]]:
  return {v.name: {c.heading: c.show(v) for c in table.columns(found)} for v in found.variants}


def test_layers_and_ratio_are_shown_where_they_differ(run_folder):
  depth = {'gelu': {'num_layers': 6, 'd_model': 64, 'ratio': 2.667}}
  rows = _shown(load(run_folder(shapes=depth)))
  assert (rows['gelu']['layers'], rows['gelu']['ratio']) == ('6', '2.67')
  assert (rows['relu']['layers'], rows['relu']['ratio']) == ('2', '4')
  told = load(run_folder(shapes={'gelu': {'d_ff': 256, 'ratio': 2.667}}))  # by d_ff
  assert 'ratio' not in _shown(told)['gelu']
  alike = load(run_folder(variants={'relu': (0, 0), 'gelu': (-0.04, 0.004)}))
  assert not {'layers', 'ratio', 'd_model'} & {c.heading for c in table.columns(alike)}


def test_a_ratio_that_its_name_tells_is_not_told_again(run_folder):
  assert 'ratio' not in [c.heading for c in table.columns(load(run_folder(**WIDTHS)))][1:]
  near = load(run_folder(shapes={'4': {'ratio': 4.03}}, **WIDTHS))
  assert [c.heading for c in table.columns(near)].count('ratio') == 1
  off = _columns_of(load(run_folder(shapes={'4': {'ratio': 4.05}}, **WIDTHS)), '4')
  assert off == ['4', '4.05']


def _columns_of(found, name: str) -> list[str]:
  (variant,) = (v for v in found.variants if v.name == name)
  return [c.show(variant) for c in table.columns(found) if c.heading == 'ratio']


def test_a_setting_that_is_compared_is_not_shown_twice(run_folder):
  variants = {'1': (0.04, 0.0), '2': (0.0, 0.0)}
  shapes = {name: {'num_layers': int(name)} for name in variants}
  options = dict(variants=variants, baseline='2', variable='model.num_layers', shapes=shapes)
  headings = [c.heading for c in table.columns(load(run_folder(**options)))]
  assert headings[0] == 'num_layers' and 'layers' not in headings


def test_shapes_go_first_where_room_is_short(run_folder):
  found = load(run_folder(shapes={'gelu': {'num_layers': 6, 'd_model': 64}}))
  out = Console(width=80, file=io.StringIO(), color_system=None)
  report.console(found, out)
  lines = out.file.getvalue().splitlines()
  first = next(line for line in lines if 'activation' in line)
  assert 'ratio' not in first and max(map(len, lines[:12])) <= 80
  head = next(line for line in lines if 'ratio' in line)  # a further table
  assert head.split()[0] == 'activation'
