"""experiments.prepare: built once, by whoever comes first, and all of what a run needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

# The script itself, which notes down each time that it builds.
NOTED = """
import sys, time
from experiments import prepare
from transformer import flags
from transformer.data import packed
log, pack = sys.argv.pop(1), packed._pack

def noted(*args):
  with open(log, 'a') as file:
    file.write('built\\n')
  time.sleep(0.5)  # so that the others come while this one is at it
  pack(*args)

packed._pack = noted
flags.run(prepare.main)
"""


def corpus(tmp_path: Path) -> list[str]:
  lines = (json.dumps({'text': f'document {k}: ' + 'some words ' * 20}) for k in range(200))
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  return [f'--data.source=jsonl:{tmp_path}/a.jsonl', f'--data.cache={tmp_path}/cache']


def test_many_at_once_build_once(tmp_path: Path) -> None:
  command = [sys.executable, '-c', NOTED, str(tmp_path / 'log'), *corpus(tmp_path), '--json']
  env = processes.environment()
  started = [
    subprocess.Popen(command, cwd=processes.ROOT, env=env, stdout=subprocess.PIPE, text=True)
    for _ in range(6)
  ]
  told = [json.loads(process.communicate(timeout=120)[0]) for process in started]
  assert (tmp_path / 'log').read_text() == 'built\n'
  assert all(t == told[0] for t in told)
  assert told[0]['info']['documents'] == 200


def test_it_tells_what_lies_where(tmp_path: Path) -> None:
  args = corpus(tmp_path)
  told = json.loads(processes.run('experiments.prepare', *args, '--json').stdout)
  folder = Path(told['folder'])
  assert told['cache'] == str(tmp_path / 'cache') and folder.parent.parent == tmp_path / 'cache'
  assert {p.name for p in folder.iterdir()} >= {'tokenizer.json', 'train.npy', 'held_out.npy'}
  assert told['disk_bytes'] == sum(p.stat().st_size for p in folder.iterdir())
  assert told['rows'] == (told['info']['train_tokens'] - 1) // 64
  shown = processes.run('experiments.prepare', *args).stdout
  assert told['fingerprint'] in shown and f'ISOFFN_CACHE={tmp_path}/cache' in shown


@pytest.mark.exhaustive
def test_a_run_takes_what_was_prepared(tmp_path: Path) -> None:
  args, shape = corpus(tmp_path), dict(processes.TINY)
  for name in ('data.source', 'model.vocab_size'):
    del shape[name]
  args += processes.flags(shape | {'data.tokenizer': 'byte'})
  told = json.loads(processes.run('experiments.prepare', *args, '--json').stdout)
  before = {p: p.stat().st_mtime_ns for p in Path(told['folder']).iterdir()}
  run = ('experiments.train', *args, f'--workdir={tmp_path}/run', '--train.steps=2')
  ran = processes.run(*run)
  assert ran.returncode == 0, ran.stderr
  [done] = (tmp_path / 'run').rglob('done.json')
  assert processes.read(done)['data'] == told['fingerprint']
  assert {p: p.stat().st_mtime_ns for p in Path(told['folder']).iterdir()} == before
  assert len(list((tmp_path / 'cache' / 'tokens').glob('*/info.json'))) == 1


def test_a_mixture_tells_its_parts(tmp_path: Path) -> None:
  _, cache = corpus(tmp_path)
  (tmp_path / 'b.txt').write_text('other words. ' * 2000)
  source = f'--data.source=mix:jsonl:{tmp_path}/a.jsonl=3,text:{tmp_path}/b.txt=1'
  ran = processes.run('experiments.prepare', source, cache, '--data.tokenizer=byte')
  assert ran.returncode == 0, ran.stderr
  assert '0.75 of the rows' in ran.stdout and 'epochs in this run' in ran.stdout


def test_pairs(tmp_path: Path) -> None:
  lines = (f'source {k}\t{"a long " * (k % 2)}target {k}\n' for k in range(200))
  (tmp_path / 'a.tsv').write_text(''.join(lines))
  sizes = {'data.source_len': 12, 'data.seq_len': 12, 'model.architecture': 'encoder_decoder'}
  args = processes.flags(sizes | {'data.source': f'pairs:{tmp_path}/a.tsv'})
  args += [f'--data.cache={tmp_path}/cache', '--data.tokenizer=byte']
  told = json.loads(processes.run('experiments.prepare', *args, '--json').stdout)
  info, files = told['info'], {p.name for p in Path(told['folder']).iterdir()}
  assert files >= {'train.npy', 'train_ends.npy', 'held_out.npy', 'held_out.txt'}
  assert told['rows'] == info['train_pairs'] < 100 < info['train_pairs_too_long'] + told['rows']
  shown = processes.run('experiments.prepare', *args).stdout
  assert told['fingerprint'] in shown and f'{info["train_pairs"]} to train on, ' in shown


def test_what_is_read_as_it_is(tmp_path: Path) -> None:
  args = processes.flags(processes.TINY | {'data.cache': tmp_path / 'cache'})
  ran = processes.run('experiments.prepare', *args)
  assert ran.returncode == 0, ran.stderr
  assert 'nothing to build: this source is read as it is' in ran.stdout
  assert not (tmp_path / 'cache').exists()


def test_mistakes(tmp_path: Path) -> None:
  ran = processes.run('experiments.prepare', f'--data.source=jsonl:{tmp_path}/no.jsonl')
  assert (ran.returncode, ran.stderr) == (
    2,
    f'error: --data.source=jsonl:{tmp_path}/no.jsonl: no file matches\n',
  )
