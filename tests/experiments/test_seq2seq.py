"""FFNs in encoder and decoder: what is planned, what is refused, and one run to its report."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.experiments.planned import column, plan, refusal, spread
from tests.processes import flags, read, run


def test_a_side_that_is_named_pays_for_its_own_gate() -> None:
  """Three matrices in place of two: 2/3 of the width, of the sides that have them."""
  found = plan('seq2seq')
  widths = {v: (row['encoder d_ff'], row['d_ff']) for v, row in found.items()}
  assert widths == {
    'relu': ('384', '384'),
    'swiglu': ('256', '256'),
    'encoder:swiglu': ('256', '384'),
    'decoder:swiglu': ('384', '256'),
  }
  assert spread(found, 'parameters') == 0
  assert spread(plan('seq2seq', '--match=none', '--vary=relu,swiglu'), 'parameters') > 0.1


@pytest.mark.parametrize('match, name', [('params', 'parameters'), ('flops', 'FLOPs/token')])
def test_every_value_keeps_to_the_budget(match: str, name: str) -> None:
  values = ['relu', 'geglu', 'encoder:geglu,decoder:swiglu', 'encoder:6,decoder:2']
  values += ['encoder:0,decoder:4', 'decoder:product(silu,tanh),2', 'encoder:prelu']
  found = plan('seq2seq', f'--vary={";".join(values)}', f'--match={match}')
  assert list(found) == values
  assert spread(found, name) < 0.005
  encoder, decoder = column(found, 'encoder d_ff'), column(found, 'd_ff')
  pair = 'encoder:6,decoder:2'
  assert encoder[pair] / decoder[pair] == pytest.approx(3, abs=0.02)
  assert encoder['encoder:0,decoder:4'] == 0
  # A slope a unit is a parameter, and no matrix product.
  assert decoder['encoder:prelu'] == 384
  assert (encoder['encoder:prelu'] < 384) == (match == 'params')


def test_without_a_budget_ratios_are_what_they_say() -> None:
  found = plan('seq2seq', '--vary=relu;encoder:0;decoder:0;2,silu', '--match=none')
  widths = {v: (row['encoder d_ff'], row['d_ff']) for v, row in found.items()}
  assert widths == {
    'relu': ('384', '384'),
    'encoder:0': ('0', '384'),
    'decoder:0': ('384', '0'),
    '2,silu': ('192', '192'),
  }


_NOT_NAMED = """
from experiments import lab, seq2seq
from transformer.config import PRESETS, Config
lab.FLAGS(['', '--match=params'])
told = {'model.architecture': 'encoder_decoder', 'ffn.activation': 'silu', 'ffn.ratio': 2.0}
asked = Config().replace(**PRESETS['pilot'] | told)
for value in ('decoder:geglu', 'relu'):
  f = seq2seq.config_of(asked, value, 0).ffn
  print(f.activation, f.encoder_activation or '-', f.d_ff, f.encoder_ratios or '-')
"""


def test_what_is_not_named_is_as_the_flags_have_it() -> None:
  """In a process of its own: a script defines its flags when it is imported."""
  done = subprocess.run([sys.executable, '-c', _NOT_NAMED], capture_output=True, text=True)
  assert done.stderr == ''
  assert done.stdout.splitlines() == ['geglu silu 192 -', 'relu - 192 -']


MIXED = '--vary=relu;encoder:0'
MISTAKES = {
  MIXED: f'{MIXED}: encoder:0 leaves no width to give way to the budget; name both sides, as in '
  'encoder:6,decoder:2, or compare at --match=none',
  '--vary=relu;0': '--vary=relu;0: 0 leaves no width to give way to the budget; name both sides, '
  'as in encoder:6,decoder:2, or compare at --match=none',
  '--vary=relu;4': '--vary=relu;4: relu and 4 are the same; leave one out',
  '--vary=relu;encoder:nan': '--vary=relu;encoder:nan: nan is no ratio; it should be from 0 on',
  '--vary=relu;middle:relu': "--vary=relu;middle:relu: 'middle:relu' should begin with encoder: "
  'or decoder:',
  '--vary=relu;encoder:silu,tanh': "--vary=relu;encoder:silu,tanh: 'encoder:silu,tanh' names two "
  'of the same for the encoder',
  '--vary=relu;swigul': "--vary=relu;swigul: no variant 'swigul'; did you mean swiglu?",
  '--vary=relu;encoder:prelu(begin=0)': '--vary=relu;encoder:prelu(begin=0): prelu has no argument '
  "'begin'; it takes none",
  '--vary=all': '--vary=all: ffn has no list of values; name some',
  '--ffn.encoder_ratios=2': '--ffn.encoder_ratios: is what this experiment varies; use --vary',
  '--model.architecture=decoder': '--model.architecture=decoder: has not both an encoder and a '
  'decoder; use experiments.activations or experiments.ffn_width',
  '--data.source=text:a.txt': '--data.source=text:a.txt: gives no pairs of a source and a target, '
  'which --model.architecture=encoder_decoder learns from; take stdlib, pairs:FILE.tsv or '
  'tfds:NAME of a set of translations',
}


@pytest.mark.parametrize('wrong', MISTAKES)
def test_a_mistake_is_one_line(wrong: str) -> None:
  assert refusal('seq2seq', wrong) == MISTAKES[wrong]


@pytest.mark.parametrize(
  'args, message',
  [
    (
      ('--setting=model.architecture', '--vary=all'),
      '--setting=model.architecture: losses of other tasks do not compare; use experiments.train',
    ),
    (
      ('--setting=data.tokenizer', '--vary=byte,bpe', '--model.architecture=encoder'),
      '--setting=data.tokenizer: --model.architecture=encoder predicts some tokens only, so that '
      'its loss has no bits per byte, and nats per token of different tokenizers do not compare',
    ),
  ],
)
def test_tasks_are_not_compared(args: tuple[str, ...], message: str) -> None:
  assert refusal('compare', *args) == message


def test_settings_of_both_architectures_compare() -> None:
  args = ('--setting=model.norm_placement', '--vary=pre,post')
  for kind in ('encoder', 'encoder_decoder'):
    assert len(plan('compare', *args, f'--model.architecture={kind}')) == 2


SETTINGS = {
  'model.d_model': 16,
  'model.num_layers': 1,
  'model.num_heads': 2,
  'data.tokenizer': 'byte',
  'data.held_out': 0.3,
  'data.source_len': 8,
  'data.seq_len': 8,
  'data.batch_size': 4,
  'train.steps': 6,
  'train.decoded': 5,
  'seeds': '0..1',
}


@pytest.mark.exhaustive
def test_from_a_file_of_pairs_to_a_report(tmp_path: Path) -> None:
  pairs, workdir = tmp_path / 'pairs.tsv', tmp_path / 'run'
  pairs.write_text(''.join(f'<{k:02}>\t{k % 7}|{k:02}\n' for k in range(60)))
  told = SETTINGS | {'data.source': f'pairs:{pairs}', 'vary': 'relu;encoder:swiglu'}
  args = [*flags(told), f'--workdir={workdir}']
  ended = run('experiments.seq2seq', *args)
  assert ended.returncode == 0, ended.stderr
  cells = sorted((workdir / 'cells').iterdir())
  assert len(cells) == 4
  for cell in cells:
    done, samples = read(cell / 'done.json'), read(cell / 'samples.json')
    assert {'eval/loss', 'eval/bits_per_byte', 'eval/exact_match', 'eval/bleu'} <= done.keys()
    assert samples['decoded'] == len(samples['samples']) == 5
  sources = [[s['source'] for s in read(c / 'samples.json')['samples']] for c in cells]
  assert all(s == sources[0] for s in sources)
  for shown in (ended.stdout, (workdir / 'report.md').read_text()):
    assert 'held-out nats/target token' in shown and 'encoder d_ff' in shown and 'chrF' in shown
    assert 'tokens/s' not in shown and '24 pairs' in shown
  page = (workdir / 'report.html').read_text()
  assert '<h2>Samples</h2>' in page and '<dt>encoder:swiglu</dt>' in page
  assert f'<pre>&lt;{sources[0][0][1:3]}&gt;</pre>' in page
  with open(workdir / 'summary.csv') as f:
    table = {row['variant']: row for row in csv.DictReader(f)}
  assert float(table['relu']['chrf_mean']) >= 0
  assert (table['relu']['encoder_d_ff'], table['encoder:swiglu']['d_ff']) == ('64', '64')

  # The unigram count is one of targets: of the 24 that seed 0 sees, on those held out.
  folder = next(c for c in cells if c.name.startswith('relu-seed0'))
  assert read(folder / 'config.json')['data']['source_len'] == 8
  assert read(workdir / 'references.json')['unigram'] == pytest.approx(unigram(folder), rel=1e-6)
  assert read(workdir / 'references.json')['tokens'] == 24 * 5  # four bytes and the end

  # Scores of decoders alone are not asked of it.
  ended = run('experiments.evaluate', f'--checkpoint={folder}')
  assert (ended.returncode, ended.stderr) == (
    2,
    f'error: --checkpoint={folder}: is of --model.architecture=encoder_decoder; only a decoder has '
    'a probability for each token of a text\n',
  )


def unigram(folder: Path) -> float:
  """Nats per target token of add-one counts, from the rows' own ids."""
  from transformer import data
  from transformer.config import Config

  config = Config.from_json(json.loads((folder / 'config.json').read_text()))
  loaded = data.load(config)
  seen = [loaded.train_batch(i) for i in range(6)]
  held_out = list(loaded.eval_batches())
  targets = [
    [t for b in batches for row in b for t in row[9:] if t >= 0] for batches in (seen, held_out)
  ]
  counts = Counter(targets[0])
  total = len(targets[0]) + config.model.vocab_size
  return -sum(math.log((counts[t] + 1) / total) for t in targets[1]) / len(targets[1])


@pytest.mark.exhaustive
def test_an_encoder_is_told_in_nats_per_masked_token(tmp_path: Path) -> None:
  (tmp_path / 'a.txt').write_text('some words, and more of them. ' * 40)
  (tmp_path / 'b.txt').write_text('other words of another text. ' * 40)
  shape = {k: v for k, v in SETTINGS.items() if k not in ('seeds', 'data.source_len')}
  told = shape | {'data.source': f'text:{tmp_path}/*.txt', 'model.architecture': 'encoder'}
  workdir = tmp_path / 'run'
  ended = run('experiments.train', *flags(told), f'--workdir={workdir}')
  assert ended.returncode == 0, ended.stderr
  assert 'nats per masked token' in ended.stdout and 'bits' not in ended.stdout
  assert not (workdir / 'references.json').exists()
  report = (workdir / 'report.md').read_text()
  assert 'over the hidden ones of the held-out tokens, 15 % of them' in report
  assert 'igram' not in report and 'its per byte' not in report
