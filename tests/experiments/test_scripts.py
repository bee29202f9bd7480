"""describe, benchmark and generate, each from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests import processes

SMALL = processes.flags(processes.TINY)


def test_describe_counts_gpt2_as_published() -> None:
  """124,439,808: the parameters of the released 124M model (Radford et al. 2019)."""
  told = json.loads(processes.run('experiments.describe', '--preset=gpt2', '--json').stdout)
  assert told['params'] == 124_439_808
  assert sum(told['params_by_part'].values()) == told['params']
  assert sum(t['params'] for t in told['tensors']) == told['params']
  assert abs(told['ffn_share_of_block'] - 2 / 3) < 0.001
  assert told['flops_per_token'] == 3 * sum(told['forward_flops_per_token_by_part'].values())


def test_describe_tells_the_width_asked_and_achieved() -> None:
  shape = (
    '--model.d_model=100',
    '--model.num_heads=5',
    '--ffn.ratio=2.667',
    '--ffn.multiple_of=64',
  )
  told = json.loads(processes.run('experiments.describe', *shape, '--json').stdout)
  assert told['d_ff'] == {'target': 266.7, 'achieved': 256, 'ratio': 2.56}
  assert 'd_ff 256 for a target of 266.7' in processes.run('experiments.describe', *shape).stdout


def test_describe_tells_widths_by_layer_and_shared_heads() -> None:
  shape = ('--model.num_layers=3', '--ffn.ratios=ramp(2,4)', '--model.num_kv_heads=2')
  told = json.loads(processes.run('experiments.describe', *shape, '--json').stdout)
  assert told['d_ff'] == {'target': 768.0, 'achieved': 768, 'ratio': 3.0}
  assert told['d_ff_by_layer'] == [512, 768, 1024]
  shown = ' '.join(processes.run('experiments.describe', *shape).stdout.split())
  assert 'attention: 4 heads of 64, 2 of keys and values' in shown
  assert 'd_ff 768 on average for a target of 768, ratio 3 (by layer: 512, 768, 1,024)' in shown
  bare = processes.run('experiments.describe', '--model.num_heads=0', '--model.positions=none')
  assert '\nno attention\n' in bare.stdout
  assert '\nno FFN\n' in processes.run('experiments.describe', '--ffn.ratio=0').stdout


def test_benchmark_prints_one_object_with_the_agreed_names() -> None:
  ran = processes.run('experiments.benchmark', *SMALL, '--json', '--seconds=0.05')
  told = json.loads(ran.stdout)
  assert told['what'] == 'train'
  positive = ('tokens_per_s', 'step_ms', 'compile_s', 'mfu', 'peak_rss_mb')
  assert all(told[name] > 0 for name in positive)
  assert told['mfu'] < 1
  tokens = told['batch'][0] * told['batch'][1]
  assert abs(told['tokens_per_s'] * told['step_ms'] / 1e3 / tokens - 1) < 1e-6
  assert told['params'] == processes.cell('x').config.model.vocab_size * 16 + 16 * 3 + 3072


def test_benchmark_refuses_other_data() -> None:
  ran = processes.run('experiments.benchmark', '--data.source=stdlib')
  assert ran.returncode == 2
  assert ran.stderr == 'error: --data.source=stdlib: benchmarks run on synthetic data\n'


def test_generate_continues_a_trained_run(tmp_path: Path) -> None:
  (tmp_path / 'a.txt').write_text('the cat sat on the mat. ' * 400)
  run = {
    **processes.TINY,
    'model.vocab_size': 0,
    'data.source': f'text:{tmp_path}/*.txt',
    'data.tokenizer': 'byte',
    'data.seq_len': 32,
    'optim.learning_rate': 0.02,
    'train.steps': 150,
  }
  workdir = tmp_path / 'run'
  ran = processes.run('experiments.train', *processes.flags(run), f'--workdir={workdir}')
  assert ran.returncode == 0, ran.stderr
  prompt = ('--prompt=the cat sat on ', '--max_new_tokens=16')
  ask = ('experiments.generate', f'--checkpoint={workdir}', *prompt)
  greedy = processes.run(*ask)
  assert greedy.returncode == 0, greedy.stderr
  assert greedy.stdout == 'the cat sat on the mat. the cat\n'  # learnt by heart
  (tmp_path / 'a.txt').unlink()  # what it can read is its own, not its source's
  first, again, other = (
    processes.run(*ask, '--temperature=3', f'--seed={s}').stdout for s in (1, 1, 2)
  )
  assert first == again != other
  long = processes.run(ask[0], ask[1], f'--prompt={"x" * 40}')
  assert long.returncode == 2
  assert long.stderr == 'error: --prompt: has 41 tokens, the model was trained on 32\n'
