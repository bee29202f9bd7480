"""Flags: help in a blink, nothing heavy imported, every mistake one line that helps."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, TINY, environment, flags, run
from transformer import spec
from transformer.config import SECTIONS, SETTINGS

SCRIPTS = sorted(
  p.stem for p in (ROOT / 'experiments').glob('*.py') if 'flags.run(' in p.read_text()
)
EXPERIMENTS = ('activations', 'ffn_width', 'train')
TINY_FLAGS = flags(TINY)


def _error(script: str, *args: str, **env: str) -> str:
  """The one line of standard error of a command that must fail, without 'error: '."""
  ended = run(f'experiments.{script}', *args, **env)
  assert ended.returncode != 0
  assert ended.stdout == ''
  lines = ended.stderr.splitlines()
  assert len(lines) == 1, ended.stderr
  assert lines[0].startswith('error: ')
  return lines[0].removeprefix('error: ')


def _imported(*command: str) -> set[str]:
  """The top-level packages that a command imports; it must succeed."""
  ended = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', *command],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    check=True,
  )
  names = (x.rpartition('|')[2].strip() for x in ended.stderr.splitlines() if '|' in x)
  return {name.partition('.')[0] for name in names}


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_takes_under_a_second_and_no_jax(script: str) -> None:
  module, seconds = f'experiments.{script}', []
  while not seconds or (len(seconds) < 3 and min(seconds) >= 1.0):  # a busy machine gets two more
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = run(module, '--help')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert (ended.returncode, ended.stderr) == (0, '')
  assert min(seconds) < 1.0  # of CPU
  assert '\nscript: what to run, and where\n' in ended.stdout
  assert not _imported(module, '--help') & {'jax', 'flax', 'numpy', 'matplotlib', 'rich'}


@pytest.mark.parametrize('script', EXPERIMENTS)
def test_help_has_every_section_and_setting(script: str) -> None:
  text = run(f'experiments.{script}', '--help').stdout
  for section in SECTIONS:
    assert f'\n{section}: ' in text
  for path in SETTINGS:
    assert f'\n  --{path}=' in text
  assert 'relu | gelu | gelu_tanh | silu | relu2 | leaky_relu(slope=0.01)' in ' '.join(text.split())
  assert '--preset=                       named settings: pilot, bench, gpt2' in text
  assert max(map(len, text.splitlines())) <= 100


def test_help_shows_how_each_variant_is_written() -> None:
  words = f' {" ".join(run("experiments.train", "--help").stdout.split())} '
  for slot in spec.slots():
    for declaration in spec.variants(slot).values():
      assert f' {spec.usage(declaration)} ' in words


def test_help_into_a_closed_pipe_is_quiet() -> None:
  command = f'{sys.executable} -m experiments.train --help | head -1'
  ended = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
  assert (ended.stdout.count('\n'), ended.stderr) == (1, '')


@pytest.mark.parametrize('script', EXPERIMENTS)
def test_a_dry_run_tells_cells_and_cost_without_jax(script: str, tmp_path: Path) -> None:
  args = [f'--workdir={tmp_path / "run"}', '--dry_run', *TINY_FLAGS]
  assert not _imported(f'experiments.{script}', *args) & {'jax', 'flax', 'matplotlib'}
  ended = run(f'experiments.{script}', *args)
  assert (ended.returncode, ended.stderr) == (0, '')
  for heading in ('parameters', 'FLOPs/token', 'FLOP, in'):
    assert heading in ended.stdout
  cells = {'activations': 28, 'ffn_width': 24, 'train': 1}[script]
  assert f'\n{cells} cell{"s" if cells > 1 else ""}, ' in ended.stdout
  assert ended.stdout.endswith('nothing was run\n')
  assert not (tmp_path / 'run').exists()


def test_a_flag_beats_a_preset_beats_the_scripts_default() -> None:
  shown = 'from experiments import train; from transformer import flags\n'
  shown += 'def main():\n  c = flags.config()\n'
  shown += '  print(c.model.d_model, c.train.eval_every, c.data.seq_len, c.model.num_heads)\n'
  shown += 'flags.run(main)'

  def values(*args: str) -> list[str]:
    command = [sys.executable, '-c', shown, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()

  assert values() == ['96', '100', '64', '3']
  assert values('--preset=bench') == ['256', '100', '256', '4']
  assert values('--model.d_model=48', '--preset=bench') == ['48', '100', '256', '4']
  # A flag given its own default still beats the preset.
  assert values('--preset=bench', '--model.d_model=96') == ['96', '100', '256', '4']


def _choices(options: str) -> str:
  return f'; choose from {options}'


MISTAKES = {
  # What does not exist: the nearest that does.
  '--modle.d_model=3': '--modle.d_model: no such flag; did you mean model.d_model?',
  '--workdri=x': '--workdri: no such flag; did you mean workdir?',
  '--preset=pilto': '--preset=pilto: no such preset; did you mean pilot?',
  '--preset=zzz': '--preset=zzz: no such preset'
  + _choices('bench, gpt2, mixtral_8x7b, pilot, vaswani_base, vaswani_big'),
  '--model.positions=rotry': ("--model.positions=rotry: no variant 'rotry'; did you mean rotary?"),
  '--model.positions=rotary(bas=5)': (
    "--model.positions=rotary(bas=5): rotary has no argument 'bas'; did you mean base?"
  ),
  '--model.positions=learned(size=5)': (
    "--model.positions=learned(size=5): learned has no argument 'size'; it takes none"
  ),
  '--model.positions=rotary(1.0, 2.0)': (
    '--model.positions=rotary(1.0, 2.0): rotary takes 1 argument(s), got 2'
  ),
  '--model.positions=rotary(base=': (
    '--model.positions=rotary(base=: expected name or name(argument=value), with literal values'
  ),
  '--data.source=text': '--data.source=text: text needs glob, as in text:GLOB',
  '--ffn.activation=product(silu, gelo)': (
    "--ffn.activation=gelo: no variant 'gelo'; did you mean gelu?"
  ),
  '--ffn.activation=product(swiglu)': (
    '--ffn.activation: product takes plain activations, not swiglu'
  ),
  # Types and ranges.
  '--model.d_model=wide': '--model.d_model=wide: should be a whole number',
  '--model.dropout=half': '--model.dropout=half: should be a number',
  '--model.bias=maybe': '--model.bias=maybe: should be true or false',
  '--model.d_model=0': '--model.d_model: 0 is below the least allowed, 1',
  '--model.dropout=1.5': '--model.dropout: 1.5 is above the most allowed, 0.95',
  '--optim.learning_rate=nan': '--optim.learning_rate: nan is not a number to run with',
  '--data.held_out=0': '--data.held_out: 0.0 is below the least allowed, 0.001',
  '--seed=-1': '--seed: -1 is below the least allowed, 0',
  '--model.dtype=float16': "--model.dtype: no choice 'float16'; did you mean bfloat16?",
  '--optim.schedule=cosine(warmup=2)': (
    '--optim.schedule=cosine(warmup=2): warmup: 2.0 is above the most allowed, 1.0'
  ),
  '--data.tokenizer=bpe(vocab_size=2.5)': (
    '--data.tokenizer=bpe(vocab_size=2.5): vocab_size: 2.5 should be of type int'
  ),
  # Combinations.
  '--model.num_heads=3': (
    '--model.num_heads=3: does not divide --model.d_model=16; '
    'choose a divisor or set --model.head_dim'
  ),
  '--model.head_dim=3': '--model.positions=rotary: needs an even head width, not 3',
  '--model.num_kv_heads=3': '--model.num_kv_heads=3: does not divide --model.num_heads=2',
  '--ffn.ratios=2,x': ("--ffn.ratios=2,x: should be numbers from 0 on, '2,4,8,4' or 'ramp(2,6)'"),
  '--model.num_heads=0': (
    '--model.positions=rotary: acts in attention, and --model.num_heads=0 has none; '
    'try sinusoidal, learned or none'
  ),
  '--train.accumulate=3': '--data.batch_size=4: not divisible by --train.accumulate=3',
  # Words that are no flags.
  'relu': "'relu' is not a flag; settings are given as --name=value",
}


@pytest.mark.parametrize('wrong', MISTAKES)
def test_a_mistake_is_one_line(wrong: str, tmp_path: Path) -> None:
  workdir = tmp_path / 'run'
  assert _error('train', f'--workdir={workdir}', *TINY_FLAGS, wrong) == MISTAKES[wrong]
  assert not workdir.exists()


COMPARISONS = {
  '--vary=relu,swigul': "--ffn.activation=swigul: no variant 'swigul'; did you mean swiglu?",
  '--vary=gelu,silu': '--baseline=relu: is not among --vary=gelu,silu',
  '--seeds=0..': "--seeds=0..: expected numbers and ranges, as in '0..3' or '0,2,5'",
  '--seeds=0..2,1': '--seeds=0..2,1: is empty or names a seed twice',
  '--seeds=3..1': '--seeds=3..1: is empty or names a seed twice',
  '--match=flop': '--match=flop: choose from params, active, flops, none',
  '--ffn.activation=gelu': '--ffn.activation: is varied by this experiment; use --vary',
  '--seed=3': '--seed: is varied by this experiment; use --seeds',
}


@pytest.mark.parametrize('wrong', COMPARISONS)
def test_a_mistaken_comparison_is_one_line(wrong: str, tmp_path: Path) -> None:
  workdir = tmp_path / 'run'
  assert _error('activations', f'--workdir={workdir}', *TINY_FLAGS, wrong) == COMPARISONS[wrong]
  assert not workdir.exists()


WIDTHS = {
  '--vary=4,wide': "--ffn.ratios=wide: should be numbers from 0 on, '2,4,8,4' or 'ramp(2,6)'",
  '--vary=4,-1': '--ffn.ratio: -1.0 is below the least allowed, 0.0',
  '--vary=4,nan': '--ffn.ratio: nan is not a number to run with',
  '--ffn.d_ff=64': '--ffn.d_ff: is what this experiment varies; use --vary with ratios',
  '--baseline=x': '--baseline=x: is not among --vary=0.25,1,2,4,8,16',
  '--vary=4,10000': '--match=params: ratio 10000 is over the budget of 3,632',
}


@pytest.mark.parametrize('wrong', WIDTHS)
def test_a_mistaken_width_is_one_line(wrong: str, tmp_path: Path) -> None:
  workdir = tmp_path / 'run'
  assert _error('ffn_width', f'--workdir={workdir}', *TINY_FLAGS, wrong) == WIDTHS[wrong]
  assert not workdir.exists()


def test_the_report_of_no_experiment_is_one_line(tmp_path: Path) -> None:
  assert _error('report', f'--workdir={tmp_path}').startswith(f'{tmp_path / "experiment.json"}: ')
