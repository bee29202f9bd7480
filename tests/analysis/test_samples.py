"""What variants made of held-out sources, and what it scores, in every form of the report."""

import csv
import io
import json

import pytest
from rich.console import Console

from transformer.analysis import method, page, report, samples, table
from transformer.analysis.load import load
from transformer.analysis.measures import MASKED, NATS, TARGET

from .conftest import write_folder

VARIANTS = {'relu': (0.0, 0.0), 'encoder:gelu': (-0.04, 0.004)}
PAIRS = {'model.architecture': 'encoder_decoder', 'data.source_len': 48}
SIGNATURES = {'bleu': 'tok:13a', 'chrf': 'nc:6'}


def write(path, **options):
  """A folder of pairs; seed s of a variant says '<variant> <s> <source>' of 20 sources."""
  shapes = {'relu': {'encoder_d_ff': 384}, 'encoder:gelu': {'encoder_d_ff': 256}}
  told = dict(variants=VARIANTS, variable='ffn', name='seq2seq', settings=PAIRS, shapes=shapes)
  folder = write_folder(path, **told | options)
  for cell in folder.glob('cells/*'):
    variant, seed = cell.name.rpartition('-')[0].split('-seed')
    done = json.loads((cell / 'done.json').read_text())
    scores = {'eval/exact_match': 0.0, 'eval/bleu': 2.0 + int(seed), 'eval/chrf': 20.0}
    (cell / 'done.json').write_text(json.dumps(done | scores))
    said = [
      {'source': f'def f{k}(a)', 'reference': f'<b> | {k}', 'hypothesis': f'{variant} {seed} {k}'}
      for k in range(20)
    ]
    record = {'decoded': 256, 'held_out': 1234, **SIGNATURES, 'samples': said}
    (cell / 'samples.json').write_text(json.dumps(record))
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp('runs') / 'seq2seq')


def test_a_few_sources_evenly_spread_by_each_first_seed(folder):
  found = samples.samples(load(folder), 4)
  assert [s.source for s in found] == [f'def f{k}(a)' for k in (0, 5, 10, 15)]
  assert found[1].said == (('encoder:gelu', 'encoder:gelu 0 5'), ('relu', 'relu 0 5'))
  assert found[1].reference == '<b> | 5'


def test_only_what_all_have_decoded_and_what_can_be_read(tmp_path):
  path = write(tmp_path / 'runs')
  first = next(path.glob('cells/relu-seed0-*')) / 'samples.json'
  record = json.loads(first.read_text())
  first.write_text(json.dumps(record | {'samples': record['samples'][17:]}))
  assert [s.source for s in samples.samples(load(path))] == [f'def f{k}(a)' for k in (17, 18, 19)]
  first.write_text('{"half')
  assert {who for s in samples.samples(load(path)) for who, _ in s.said} == {'encoder:gelu'}
  for other in path.glob('cells/*/samples.json'):
    other.unlink()
  found = load(path)
  assert samples.samples(found) == [] and samples.facts(found) == {}
  assert '<h2>Samples</h2>' not in page.html(found, [])


def test_a_long_source_is_cut_and_says_so():
  assert samples.clipped('a\n  b') == 'a\n  b'
  shown = samples.clipped('\n'.join(['x' * 200, *map(str, range(40))])).split('\n')
  assert shown[0] == 'x' * 99 + '…' and shown[-1] == '… 25 more lines'
  assert len(shown) == 17


def test_every_form_of_the_report_tells_them(folder):
  found = load(folder)
  text = page.html(found, [])
  assert '<pre>def f0(a)</pre>' in text and '<dt>relu</dt><dd>relu 0 0</dd>' in text
  assert '<dd>&lt;b&gt; | 0</dd>' in text
  text = report.markdown(found, [])
  assert '```\ndef f0(a)\n```\n\n```\nreference: <b> | 0\nencoder:gelu: encoder:gelu 0 0' in text
  out = Console(width=80, file=io.StringIO(), color_system=None)
  report.console(found, out)
  lines = out.file.getvalue().splitlines()
  assert '   reference  <b> | 0' in lines and '        relu  relu 0 0' in lines
  assert all(len(line) <= 80 for line in lines if '--' not in line)


def test_scores_are_columns_and_have_no_part_in_the_verdict(folder):
  found = load(folder)
  assert found.measure is TARGET
  headings = [c.heading for c in table.columns(found)]
  assert headings[-4:] == ['exact match, %', 'BLEU', 'chrF', 'seeds']
  assert {'encoder d_ff', 'decoder d_ff'} <= set(headings) and 'tokens/s' not in headings
  (bleu,) = (c for c in table.columns(found) if c.heading == 'BLEU')
  assert bleu.show(found.variants[0]) == '3.5 ± 2.1'  # 2, 3, 4, 5: t(3) · s/√4 = 3.182 · 1.291/2
  (row, _) = csv.DictReader(io.StringIO(report.summary(found)))
  assert (row['bleu_mean'], row['exact_match_mean'], row['judged_by']) == (
    *('3.5', '0.0', 'nats per target token'),
  )
  (told,) = (line for line in method.numbers(found) if line.startswith('Exact match'))
  assert told == (
    'Exact match, BLEU and chrF: 256 of the 1,234 held-out sources, evenly spread and the same for '
    'every cell, decoded greedily after the last step and held against their references; from 0 to '
    '100, more is better. Signatures of sacrebleu: BLEU tok:13a, chrF nc:6. They take no part in '
    'the verdict.'
  )


def test_what_is_trained_on_and_judged_by_is_named_by_the_architecture(folder, tmp_path):
  pairs = report.markdown(load(folder), [])
  assert (
    '2 encoder and 2 decoder layers, sources up to 48, targets up to 64 tokens, 6.40 k pairs of '
    in pairs
  )
  assert 'a bigram count (3.940 nats per target token)' in pairs
  assert '4 times the pairs (25.6 k each)' in pairs
  masked = load(write_folder(tmp_path / 'e', settings={'model.architecture': 'encoder'}))
  assert masked.measure is MASKED
  assert 'bits/byte' not in [c.heading for c in table.columns(masked)]
  assert load(write_folder(tmp_path / 'd')).measure is NATS
