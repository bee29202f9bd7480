"""generate, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import processes


@pytest.mark.exhaustive
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
  assert long.stderr == (
    'error: --prompt: has 41 tokens, with the 0 that begins it; the context of the model is 32\n'
  )
  table = processes.run(*ask[:2], '--prompt=the cat', '--show_next=3', '--temperatures=0,1,1e9')
  assert table.returncode == 0, table.stderr
  lines = [line for line in table.stdout.splitlines() if '0.003' in line]  # 1/257 at 1e9
  assert len(lines) == 3 and "' '" in lines[0] and '1.0000' in lines[0]
  beams = processes.run(*ask, '--beams=3')
  assert beams.stdout.startswith('1.  -0.') and beams.stdout.count('.  -') == 3
  assert beams.stdout.splitlines()[:2][1] == 'the cat sat on the mat. the cat'  # as greedily
  own = processes.run(*ask, '--temperature=1', '--top_k=1')
  assert own.stdout == greedy.stdout
  for flag, message in MISTAKES.items():
    wrong = processes.run(*ask, *flag.split())
    assert (wrong.returncode, wrong.stderr) == (2, f'error: {message}\n'), flag


MISTAKES = {
  '--temperature=-1': '--temperature=-1.0: should be 0, or a number from 1e-6 on',
  '--top_k=-1': '--top_k=-1: below the least allowed, 0',
  '--top_p=0': '--top_p=0.0: should be above 0 and at most 1',
  '--top_p=0.5': '--temperature=0: is greedy and draws nothing; --top_k and --top_p need '
  'one above 0',
  '--beams=1001': '--beams=1001: above the most allowed, 1000',
  '--beams=2 --temperature=1': '--beams: looks for the likeliest and draws nothing; leave '
  '--temperature, --top_k and --top_p out',
  '--max_new_tokens=2000000000': '--max_new_tokens=2000000000: above the most allowed, 1000000',
  f'--seed={2**64}': f'--seed={2**64}: above the most allowed, 2147483647',
  '--show_next=3': '--max_new_tokens: is of writing, and --show_next writes nothing; leave it out',
  '--show_next=3 --top_k=2': '--top_k: is of writing, and --show_next writes nothing; leave it out',
  '--temperatures=1': '--temperatures: is of --show_next, which is not asked for',
  '--length_penalty=1': '--length_penalty: is of --beams, which is not asked for',
  '--length_penalty=-1': '--length_penalty=-1.0: should be a number from 0 on',
  '--source=x': '--source: is for an encoder_decoder; give this model a --prompt',
}
