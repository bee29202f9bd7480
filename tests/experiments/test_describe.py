"""describe, from the command line: counts, tensors and memory, as tables and as JSON."""

from __future__ import annotations

import json
import math
import re

import pytest

from tests import processes


def told(*args: str) -> dict:
  ran = processes.run('experiments.describe', *args, '--json')
  assert (ran.returncode, ran.stderr) == (0, '')
  return json.loads(ran.stdout)


def test_describe_counts_gpt2_as_published() -> None:
  """124,439,808: the parameters of the released 124M model (Radford et al. 2019)."""
  facts = told('--preset=gpt2')
  assert facts['params'] == 124_439_808
  assert sum(facts['params_by_part'].values()) == facts['params']
  assert sum(t['params'] for t in facts['tensors']) == facts['params']
  assert abs(facts['ffn_share_of_block'] - 2 / 3) < 0.001
  assert facts['flops_per_token'] == 3 * sum(facts['forward_flops_per_token_by_part'].values())


def test_describe_tells_the_width_asked_and_achieved() -> None:
  shape = (
    '--model.d_model=100',
    '--model.num_heads=5',
    '--ffn.ratio=2.667',
    '--ffn.multiple_of=64',
  )
  facts = told(*shape)
  assert facts['d_ff'] == {'target': 266.7, 'achieved': 256, 'ratio': 2.56}
  assert 'd_ff 256 for a target of 266.7' in processes.run('experiments.describe', *shape).stdout


def test_describe_tells_widths_by_layer_and_shared_heads() -> None:
  shape = ('--model.num_layers=3', '--ffn.ratios=ramp(2,4)', '--model.num_kv_heads=2')
  facts = told(*shape)
  assert facts['d_ff'] == {'target': 768.0, 'achieved': 768, 'ratio': 3.0}
  assert facts['d_ff_by_layer'] == [512, 768, 1024]
  shown = ' '.join(processes.run('experiments.describe', *shape).stdout.split())
  assert 'attention: 4 heads of 64, 2 of keys and values' in shown
  assert 'd_ff 768 on average for a target of 768, ratio 3 (by layer: 512, 768, 1,024)' in shown
  bare = processes.run('experiments.describe', '--model.num_heads=0', '--model.positions=none')
  assert '\nno attention\n' in bare.stdout
  assert '\nno FFN\n' in processes.run('experiments.describe', '--ffn.ratio=0').stdout


def test_the_ffn_of_the_classical_block_holds_two_thirds() -> None:
  """8 d² of 12 d²: d_ff = 4 d_model, one self-attention of heads that fill d_model, no biases."""
  facts = told('--model.d_model=96', '--model.num_heads=3', '--ffn.ratio=4')
  parts = facts['params_by_part']
  assert 3 * parts['ffn'] == 2 * (parts['ffn'] + parts['attention'])
  assert facts['ffn_share_of_block'] == 2 / 3
  # A decoder that reads a source has 4 d² more: with its encoder, 16 of 28.
  both = told('--model.architecture=encoder_decoder', '--ffn.ratio=4')
  assert both['ffn_share_of_block'] == 16 / 28
  narrow = told('--model.d_model=96', '--model.num_heads=3', '--ffn.ratio=2')
  assert narrow['ffn_share_of_block'] == 1 / 2


def test_a_flag_that_changes_nothing_is_named() -> None:
  ran = processes.run('experiments.describe', '--loss.mask_rate=0.3', '--json')
  assert (ran.returncode, ran.stderr) == (
    0,
    '--loss.mask_rate: changes nothing here, where there is nothing it acts on\n',
  )


def test_describe_tells_experts_and_what_a_token_meets() -> None:
  shape = ('--preset=bench', '--moe.experts=4', '--ffn.d_ff=512', '--moe.granularity=2')
  shape += ('--moe.shared_experts=1', '--moe.layers=every(2)')
  facts = told(*shape)
  assert facts['experts'] == {
    'number': 8,
    'd_ff': 256,
    'per_token': 4,
    'shared': 1,
    'granularity': 2,
    'layers': {'layers': [1, 3, 5]},
  }
  expert = 2 * 256 * 256
  assert facts['params'] - facts['active_params'] == 3 * 4 * expert  # 4 of 8, in 3 layers
  parts = facts['params_by_part']
  assert (parts['experts'], parts['shared experts']) == (3 * 8 * expert, 3 * expert)
  assert parts['router'] == 3 * 256 * 8
  ffn = parts['ffn'] + parts['router'] + parts['experts'] + parts['shared experts']
  assert facts['ffn_share_of_block'] == ffn / (ffn + parts['attention'])
  assert [p['name'] for p in facts['forward'] if 'mixture' in p['name']] == [
    f'decoder layer {n}, mixture of experts' for n in (2, 4, 6)
  ]
  shown = ' '.join(processes.run('experiments.describe', *shape).stdout.split())
  assert (
    'experts: 8 of d_ff 256 (one of 512 split), 4 a token by topk, 1 more for all tokens, moved by '
    f'dropless, in layers 1, 3, 5 (from 0 on); {facts["active_params"]:,} of {facts["params"]:,} '
    'parameters active'
  ) in shown
  assert told('--preset=bench')['experts'] is None
  ahead = ' routing looks ahead, at tokens that the model is to predict '
  assert not facts['looks_ahead'] and ahead not in shown
  shape += ('--moe.router=expert_choice', '--moe.allow_noncausal')
  assert told(*shape)['looks_ahead']
  assert ahead in ' '.join(processes.run('experiments.describe', *shape).stdout.split())


def test_tensors_and_memory_as_json() -> None:
  facts = told('--preset=bench', '--optim.name=lion', '--optim.ema=0.9')
  assert [part['name'] for part in facts['forward']] == [
    *('embedding', 'decoder layer, self-attention', 'decoder layer, FFN', 'logits')
  ]
  tensors = {t['name']: t for part in facts['forward'] for t in part['tensors']}
  shapes = {name: t['shape'] for name, t in tensors.items()}
  assert shapes['x_BTD'] == [16, 256, 256] and shapes['h_BTF'] == [16, 256, 1024]
  assert shapes['scores_BNTS'] == [16, 4, 256, 256] and shapes['logits_BTV'] == [16, 256, 8192]
  kept = [p['times'] * t['bytes'] for p in facts['forward'] for t in p['tensors'] if t['kept']]
  assert sum(kept) == facts['activation_bytes']
  each = 4 * facts['params']
  assert facts['state_bytes'] == dict.fromkeys(
    ('parameters', 'gradient', 'moments', 'average'), each
  )
  narrow = told('--preset=bench', '--model.dtype=bfloat16')
  assert narrow['state_bytes'] == {'parameters': each, 'gradient': each, 'moments': 2 * each}
  assert narrow['activation_bytes'] < facts['activation_bytes'] * 0.7


@pytest.mark.parametrize('columns', [80, 120])
@pytest.mark.parametrize('preset', ['vaswani_base', 'gpt2'])
def test_every_line_fits_a_terminal(preset, columns) -> None:
  ran = processes.run('experiments.describe', f'--preset={preset}', COLUMNS=str(columns))
  lines = ran.stdout.splitlines()
  assert max(map(len, lines)) <= columns
  assert ran.stderr == ''
  heads = 8 if preset == 'vaswani_base' else 12
  for name in ('x_BTD', 'query_BTNH', 'scores_BNTS', 'h_BTF', 'logits_BTV'):
    assert any(re.match(rf'  {name} +\(\d+, ', line) for line in lines)
  assert f'attention: {heads} heads of 64' in lines
  if preset == 'vaswani_base':
    at = lines.index('decoder layer, cross-attention × 6')
    assert lines[at + 2].split('  ')[1:3] == ['key_BSKH', '']
    assert '(200, 128, 8, 64)' in lines[at + 2] and lines[at + 2].rstrip().endswith('50.00')


def test_memory_is_told_in_bytes() -> None:
  shown = processes.run('experiments.describe', '--preset=bench').stdout
  facts = told('--preset=bench')
  for name, value in facts['state_bytes'].items():
    assert re.search(rf'│ {name} +│ +{value:,} │', shown)
  assert f' {facts["activation_bytes"]:,} │' in shown
  total = sum(facts['state_bytes'].values()) + facts['activation_bytes']
  assert f' {total:,} │' in shown
  assert math.isclose(sum(facts['state_bytes'].values()), 16 * facts['params'])


def test_memory_is_told_by_the_compiled_program_too() -> None:
  """The state, less the gradient that lives within the step, and the batch are its arguments."""
  facts = told(*processes.flags(processes.TINY), '--compiled')
  held = sum(facts['state_bytes'].values()) - facts['state_bytes']['gradient']
  parts = facts['compiled']['parts']
  assert held < parts['arguments'] < held + 4096
  assert facts['compiled']['peak'] == sum(parts.values())
