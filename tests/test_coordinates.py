"""The coordinate check: under muP activations stay where they are as the model widens."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import battery, processes
from transformer.coordinates import CHANGE, coordinates

SHAPE = {
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
    ('ffn.d_ff', (64, 512), ('down', 'stream_ffn')),
  ],
)
def test_sizes_stay_under_mup_and_grow_under_the_standard_rule(setting, widths, grow):
  found = coordinates(battery.tiny(**SHAPE), setting, widths)
  mup, standard = found['slopes']['mup'], found['slopes']['standard']
  for name, slope in mup.items():
    assert abs(slope) < (0.6 if name in RANDOM else 0.25), name
  for name in grow:  # negative control
    assert standard[name] > 0.3, name


def test_rules_begin_alike_at_the_base_and_every_run_is_watched():
  seen = []
  found = coordinates(battery.tiny(**SHAPE), 'model.d_model', (16,), 1, lambda: seen.append(0))
  assert len(seen) == 2 and found['widths'] == [16]
  assert found['sizes']['mup'] == found['sizes']['standard']
  sizes = found['sizes']['mup']
  assert sizes[CHANGE][0] == [0] and sizes[CHANGE][1][0] > 0
  assert {'embedding', 'scores', 'hidden', 'down', 'stream_ffn', 'logits'} < sizes.keys()


SCRIPT = """
import sys
from transformer import coordinates, flags

def stand_in(config, setting, widths, watch):
  for _ in range(2 * len(widths)):
    watch()
  sizes = {'stream_ffn': [[1.0] * 4, [2.0] * 4], coordinates.CHANGE: [[0.0] * 4, [1.0] * 4]}
  return {'setting': setting, 'widths': widths, 'sizes': dict.fromkeys(coordinates.RULES, sizes),
          'slopes': dict.fromkeys(coordinates.RULES, {'stream_ffn': 0.25, coordinates.CHANGE: 0.0})}

coordinates.coordinates = stand_in
from experiments import describe
flags.run(describe.main)
"""


@pytest.mark.parametrize('ratio', [4, 0])
def test_describe_draws_it_and_tells_the_slopes(tmp_path, ratio):
  """With what trains replaced: the widths it asks for, the table and the picture."""

  def run(*given: str) -> str:
    command = [sys.executable, '-c', SCRIPT, '--model.d_model=64', f'--ffn.ratio={ratio}', *given]
    env = processes.environment(PYTHONPATH=str(processes.ROOT))
    return subprocess.run(
      command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout

  told = json.loads(run('--coordinates', '--json'))['coordinates']
  widths = {found['setting']: found['widths'] for found in told}
  assert widths == {'model.d_model': [8, 16, 32, 64]} | (
    {'ffn.d_ff': [32, 64, 128, 256]} if ratio else {}
  )
  picture = tmp_path / 'plots' / 'coordinates.png'
  assert picture.read_bytes().startswith(b'\x89PNG')
  picture.unlink()
  shown = run('--coordinates').splitlines()
  assert any('stream_ffn' in line and line.count('+0.25') == 2 * len(told) for line in shown)
  assert picture.exists()
