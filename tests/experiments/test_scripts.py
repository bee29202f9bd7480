"""benchmark and generate, each from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests import processes

SMALL = processes.flags(processes.TINY)


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
  assert long.stderr == 'error: --prompt: has 41 tokens; the context of the model is 32\n'
