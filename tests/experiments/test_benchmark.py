"""benchmark, from the command line. What it measures is tested in tests/measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import processes

SMALL = (*processes.flags(processes.TINY), '--json', '--seconds=0.01')


def told(*flags: str) -> list[dict]:
  ran = processes.run('experiments.benchmark', *SMALL, *flags)
  assert ran.returncode == 0, ran.stderr
  return [json.loads(line) for line in ran.stdout.splitlines()]


def test_one_object_with_the_agreed_names_and_a_trace(tmp_path: Path) -> None:
  [facts] = told(f'--profile={tmp_path}/trace')
  assert facts['what'] == 'train'
  positive = ('tokens_per_s', 'step_ms', 'compile_s', 'mfu', 'peak_rss_mb', 'memory_share')
  assert all(facts[name] > 0 for name in positive)
  tokens = facts['batch'][0] * facts['batch'][1]
  assert abs(facts['tokens_per_s'] * facts['step_ms'] / 1e3 / tokens - 1) < 1e-6
  assert facts['params'] == processes.cell('x').config.model.vocab_size * 16 + 16 * 3 + 3072
  rates = facts['ceilings']['matmul_gflops']
  assert set(rates['float32->float32']) == {'1024x1024x1024', '64x16x64'}
  assert facts['peak_gflops_per_s'] == max(rates['float32->float32'].values())
  assert facts['mfu'] == pytest.approx(facts['gflops_per_s'] / facts['peak_gflops_per_s'])
  parts = facts['step_memory_mb']
  assert parts['peak'] == pytest.approx(sum(parts.values()) - parts['peak'])
  costs = [row['ms'] for row in facts['profile']]
  assert costs == sorted(costs, reverse=True)
  origins = ' '.join(row['origin'] for row in facts['profile'])
  assert 'backward: ' in origins and 'forward: ' in origins and '/ffn/' in origins
  assert list(tmp_path.rglob('perfetto_trace.json.gz'))


@pytest.mark.exhaustive
def test_turns_with_other_flags() -> None:
  ours = ('--what=decode', '--prompt_tokens=3', '--new_tokens=5', '--moe.experts=4')
  [facts] = told(*ours, '--moe.router=bias', '--against=--moe.experts=0', '--rounds=3')
  assert (facts['what'], facts['against']['what']) == ('decode', 'decode')
  assert facts['params'] > facts['against']['params']
  assert facts['against_flags'] == '--moe.experts=0'
  assert facts['ratio'] == pytest.approx(facts['tokens_per_s'] / facts['against']['tokens_per_s'])
  assert sorted(facts['ratio_by_round'])[1] == round(facts['ratio'], 3)


@pytest.mark.exhaustive
def test_several_things_beside_another_program() -> None:
  """Each a line, in the order asked for."""
  theirs = 'echo "{\\"tokens_per_s\\": 100, \\"peer\\": \\"none\\"}"'
  decode = ('--prompt_tokens=3', '--new_tokens=5', '--beams=2', '--rounds=1')
  found = told('--what=decode, memory', *decode, f'--against_command={theirs}')
  assert [facts['what'] for facts in found] == ['decode', 'memory']
  assert found[0]['against'] == {'tokens_per_s': 100, 'peer': 'none'}
  assert found[0]['ratio'] == pytest.approx(found[0]['tokens_per_s'] / 100)
  assert found[0]['beams'] == 2
  assert found[1]['step_peak_mb'] > 0


def test_the_other_side_may_have_what_is_a_default_where_a_preset_has_another() -> None:
  against = '--against=--model.positions=rotary --model.unroll=true'
  [facts] = told('--preset=gpt2', '--what=memory', '--rounds=1', against)
  assert facts['params'] - facts['against']['params'] == 16 * 16  # learned: a vector a position


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--what=sing'],
      '--what=sing: choose from train, evaluate, loop, decode, data, start, memory',
    ),
    (
      ['--against=hello'],
      "--against=hello: should be settings, as in '--ffn.activation=relu'",
    ),
    (
      ['--against=--moe.exprts=0'],
      "--against=--moe.exprts=0: Unknown command line flag 'moe.exprts'. Did you mean: "
      'moe.experts ?',
    ),
    (
      ['--against=--model.num_heads=3'],
      '--model.num_heads=3: does not divide --model.d_model=16; choose a divisor or set '
      '--model.head_dim',
    ),
    (['--suite=cpu'], '--model.d_model: --suite has rows of its own; leave one of them out'),
    (['--new_tokens=0'], '--new_tokens=0: below the least allowed, 1'),
    (['--what=data', '--profile=x'], '--profile=x: --what=data has no steps to trace'),
    (
      ['--data.source=stdlib', '--model.vocab_size=0'],
      '--data.source=stdlib: benchmarks run on synthetic data',
    ),
  ],
)
def test_benchmark_refuses(flags: list[str], message: str) -> None:
  ran = processes.run('experiments.benchmark', *SMALL, *flags)
  assert (ran.returncode, ran.stderr) == (2, f'error: {message}\n')
