"""The coordinate check: under muP activations stay where they are as the model widens."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import battery, processes
from transformer import parametrization
from transformer.config import Config, resolve, routing
from transformer.coordinates import CHANGE, RULES, WIDTHS, _at, coordinates, sweep
from transformer.errors import UserError

SHAPE = battery.TINY | {
  'model.num_layers': 1,
  'ffn.activation': 'swiglu',
  'ffn.d_ff': 0,
  'ffn.ratio': 4.0,
  'optim.learning_rate': 0.04,
}
# Hardly learnt in so few steps, scores shrink with the root of the width, as sums of random signs
# divided by their number do.
RANDOM = ('scores',)


@pytest.mark.parametrize(
  ('setting', 'widths', 'grow'),
  [
    ('model.d_model', (64, 256), ('logits', CHANGE, 'out', 'down', 'stream_ffn')),
    pytest.param(*('ffn.d_ff', (64, 512), ('down', 'stream_ffn')), marks=pytest.mark.exhaustive),
  ],
)
def test_sizes_stay_under_mup_and_grow_under_the_standard_rule(setting, widths, grow):
  found = coordinates(Config().replace(**SHAPE), setting, widths)
  mup, standard = found['slopes']['mup'], found['slopes']['standard']
  for name, slope in mup.items():
    assert abs(slope) < (0.6 if name in RANDOM else 0.25), name
  for name in grow:  # negative control
    assert standard[name] > 0.3, name


@pytest.mark.parametrize(
  'kind',
  [
    'encoder',
    *(pytest.param(k, marks=pytest.mark.exhaustive) for k in ('decoder', 'encoder_decoder')),
  ],
)
def test_rules_begin_alike_at_the_base_and_every_run_is_watched(kind):
  own = {'moe.experts': 2, 'moe.router': 'bias'} if kind == 'encoder' else {}
  own |= {'model.architecture': kind, 'data.source_len': 7}
  seen, asked = [], Config().replace(**SHAPE | own)
  found = coordinates(asked, 'model.d_model', (16,), 1, lambda: seen.append(0))
  assert len(seen) == 2 and found['widths'] == [16]
  assert found['sizes']['mup'] == found['sizes']['standard']
  sizes = found['sizes']['mup']
  assert sizes[CHANGE][0] == [0] and sizes[CHANGE][1][0] > 0
  assert {'embedding', 'scores', 'hidden', 'down', 'stream_ffn', 'logits'} < sizes.keys()
  beside = {'source_embedding', 'encoder_normed', 'cross_attention/scores', 'cross_attention/out'}
  assert beside & sizes.keys() == (beside if kind == 'encoder_decoder' else set())


SHAPES = [  # as asked, with the widths of d_model
  ({'model.d_model': 64, 'model.num_heads': 8}, [16, 32, 64]),
  ({'model.d_model': 96, 'model.num_heads': 3}, [12, 24, 48, 96]),
  ({'model.d_model': 96, 'model.num_heads': 8, 'model.num_kv_heads': 2}, [16, 32, 64]),
  ({'model.d_model': 24, 'model.num_heads': 8, 'model.positions': 'learned'}, [16, 32]),
  ({'model.d_model': 16, 'model.num_heads': 8}, [16, 32]),
  ({'model.d_model': 64, 'model.num_heads': 8, 'model.head_dim': 16}, [8, 16, 32, 64]),
  ({'model.d_model': 768, 'model.num_heads': 12, 'model.head_dim': 64}, [128, 256, 512]),
  ({'model.d_model': 100, 'model.num_heads': 3, 'model.head_dim': 64}, [32, 64]),
  ({'model.d_model': 64, 'model.num_heads': 8, 'model.head_dim': 8, 'model.num_kv_heads': 4},
   [32, 64]),
  ({'model.d_model': 64, 'model.num_heads': 8, 'model.head_dim': 8, 'model.num_kv_heads': 1},
   [8, 16, 32, 64]),
  ({'model.d_model': 100, 'model.num_heads': 0, 'model.positions': 'sinusoidal'},
   [12, 24, 48, 96]),
  ({'model.d_model': 1024, 'model.num_heads': 16}, [128, 256, 512, 1024]),
]  # fmt: skip


@pytest.mark.parametrize(('asked', 'expected'), SHAPES)
def test_every_width_of_a_sweep_is_one_the_model_can_have(asked, expected):
  config = Config().replace(**asked)
  for setting in WIDTHS:
    widths = sweep(config, setting)
    assert setting != 'model.d_model' or widths == expected
    for rule in RULES:
      shapes = [_at(config, rule, setting, width, widths[0]) for width in widths]
      assert [shape.get(setting) for shape in shapes] == widths
      for shape in shapes:
        model = shape.model
        if config.model.head_dim:
          assert model.head_dim == config.model.head_dim
          assert (
            model.num_heads * shapes[0].model.d_model == shapes[0].model.num_heads * model.d_model
          )
        else:
          assert model.num_heads == config.model.num_heads


def test_a_sweep_of_other_widths_dies_of_heads_of_width_1():
  config = Config().replace(**SHAPES[0][0])  # negative control: an eighth to all of 64 by 8 heads
  with pytest.raises(UserError, match='needs an even head width, not 1'):
    _at(config, 'mup', 'model.d_model', 8, 8)


@pytest.mark.parametrize('asked', [shape for shape, _ in SHAPES if shape['model.num_heads']])
def test_scores_and_logits_of_both_rules_are_scaled_alike_at_the_base_alone(asked):
  config = Config().replace(**asked)
  first, *others = sweep(config, 'model.d_model')

  def scales(rule: str, width: int) -> list[float]:
    shape = _at(config, rule, 'model.d_model', width, first)
    return [parametrization.attention_scale(shape), parametrization.logit_scale(shape)]

  assert scales('mup', first) == pytest.approx(scales('standard', first))
  for width in others:  # negative control
    (scores, logits), (plain, one) = scales('mup', width), scales('standard', width)
    assert logits < 0.8 * one
    grown = 1 if config.model.head_dim else width / first
    assert scores == pytest.approx(plain * grown**-0.5)


def test_groups_and_places_are_of_its_own_short_rows():
  asked = {'data.seq_len': 96, 'moe.group_size': 48, 'moe.experts': 48, 'moe.router': 'switch'}
  own = SHAPE | asked | {'moe.dispatch': 'capacity', 'moe.capacity_factor': 1.0}
  shape = _at(Config().replace(**own), 'mup', 'model.d_model', 16, 16)
  assert routing.capacity(shape, shape.data.seq_len, training=True) == 1
  assert (shape.moe.group_size, shape.moe.capacity_factor) == (0, 1.5)
  wide = own | {'moe.capacity_factor': 2.0, 'moe.eval_capacity_factor': 4.0}
  shape = _at(Config().replace(**wide), 'mup', 'model.d_model', 16, 16)
  assert (shape.moe.capacity_factor, shape.moe.eval_capacity_factor) == (2, 4)  # enough as asked


def test_d_ff_is_swept_in_its_multiples_and_not_where_there_is_none():
  config = Config().replace(**{'model.d_model': 64, 'ffn.d_ff': 320, 'ffn.multiple_of': 32})
  assert sweep(config, 'ffn.d_ff') == [32, 64, 128, 256]
  assert sweep(config.replace(**{'ffn.d_ff': 0, 'ffn.ratio': 0.0}), 'ffn.d_ff') == []
  shape = _at(config, 'mup', 'ffn.d_ff', 64, 32)
  assert (shape.ffn.d_ff, shape.model) == (64, resolve(shape).model)
  assert 'base_d_model=64, base_head_dim=16' in shape.optim.parametrization


SCRIPT = """
import sys
from transformer import coordinates, flags

def stand_in(config, setting, widths, watch):
  for _ in range(2 * len(widths)):
    watch()
  one, n = [1.0], len(widths)
  sizes = {'stream_ffn': [one * n, [2.0] * n], coordinates.CHANGE: [[0.0] * n, one * n]}
  return {'setting': setting, 'widths': widths, 'sizes': dict.fromkeys(coordinates.RULES, sizes),
          'slopes': dict.fromkeys(coordinates.RULES, {'stream_ffn': 0.25, coordinates.CHANGE: 0.0})}

coordinates.coordinates = stand_in
from experiments import describe
flags.run(describe.main)
"""


@pytest.mark.parametrize(
  ('ratio', 'heads'),
  [(4, 4), *(pytest.param(*way, marks=pytest.mark.exhaustive) for way in ((0, 4), (4, 8)))],
)
def test_describe_draws_it_and_tells_the_slopes(tmp_path, ratio, heads):
  """With what trains replaced: the widths it asks for, the table and the picture."""

  def run(*given: str) -> str:
    shape = '--model.d_model=64', f'--model.num_heads={heads}', f'--ffn.ratio={ratio}'
    command = [sys.executable, '-c', SCRIPT, *shape, *given]
    env = processes.environment(PYTHONPATH=str(processes.ROOT))
    return subprocess.run(
      command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout

  told = json.loads(run('--coordinates', '--json'))['coordinates']
  widths = {found['setting']: found['widths'] for found in told}
  assert widths == {'model.d_model': [8, 16, 32, 64][heads == 8 :]} | (
    {'ffn.d_ff': [32, 64, 128, 256]} if ratio else {}
  )
  picture = tmp_path / 'plots' / 'coordinates.png'
  assert picture.read_bytes().startswith(b'\x89PNG')
  picture.unlink()
  shown = run('--coordinates').splitlines()
  assert any('stream_ffn' in line and line.count('+0.25') == 2 * len(told) for line in shown)
  assert picture.exists()
