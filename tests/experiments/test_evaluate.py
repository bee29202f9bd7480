"""experiments.evaluate: a trained run on its own text and on others'."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import processes

SHAPE = {k: v for k, v in processes.TINY.items() if k not in ('data.source', 'model.vocab_size')}


def train(folder: Path, **settings: object) -> Path:
  settings = SHAPE | {'train.steps': 4, 'data.cache': folder / 'cache'} | settings
  workdir = folder / 'run'
  ran = processes.run('experiments.train', *processes.flags(settings), f'--workdir={workdir}')
  assert ran.returncode == 0, ran.stderr
  return workdir


def last_evaluation(workdir: Path) -> dict:
  [cell] = (workdir / 'cells').iterdir()
  return [row for row in processes.rows(cell) if 'eval/loss' in row][-1]


def evaluate(workdir: Path, *args: str) -> dict:
  ran = processes.run('experiments.evaluate', f'--checkpoint={workdir}', '--json', *args)
  assert ran.returncode == 0, ran.stderr
  return json.loads(ran.stdout)


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A run on two sources: notes by twelve authors, and a text."""
  folder = tmp_path_factory.mktemp('mixed')
  notes = (
    {'text': f'note {k} of an author. ' * 9, 'author': f'author {k % 12}'} for k in range(150)
  )
  (folder / 'notes.jsonl').write_text('\n'.join(map(json.dumps, notes)))
  (folder / 'prose.txt').write_text('Other words stand here.\n' * 900)
  return train(
    folder,
    **{
      'data.source': f'mix:jsonl:{folder}/notes.jsonl=3,text:{folder}/prose.txt=1',
      'data.tokenizer': 'bpe(vocab_size=300)',
      'data.group_field': 'author',
      'data.held_out': 0.3,
    },
  )


def test_its_own_text_gives_the_runs_own_numbers(run: Path) -> None:
  found, row = evaluate(run), last_evaluation(run)
  assert found['nats_per_token'] == pytest.approx(row['eval/loss'], rel=1e-6)
  assert found['bits_per_byte'] == pytest.approx(row['eval/bits_per_byte'], rel=1e-6)
  assert set(found['measured'].values()) == {'held-out part'} and found['step'] == 4
  assert (found['seq_len'], found['stride'], found['looks_ahead']) == (16, 16, False)


def test_groups_and_parts_add_up(run: Path) -> None:
  found = evaluate(run)
  notes, prose = found['parts']
  assert 'notes.jsonl' in notes['part'] and 'prose.txt' in prose['part']
  for rows in (found['parts'], found['groups']):
    for name in ('tokens', 'bytes'):
      assert sum(row[name] for row in rows) == found[name]
    nats = sum(row['nats_per_token'] * row['tokens'] for row in rows)
    assert nats / found['tokens'] == pytest.approx(found['nats_per_token'])
  authors = [row['group'] for row in found['groups'] if row['part'] == notes['part']]
  assert 1 <= len(authors) < 12 and all(a.startswith('author ') for a in authors)
  tokens = [row['tokens'] for row in found['groups']]
  assert tokens == sorted(tokens, reverse=True)
  one = found['groups'][0]
  assert one['bits_per_byte'] == pytest.approx(
    one['nats_per_token'] * one['tokens'] / math.log(2) / one['bytes']
  )


@pytest.mark.exhaustive
def test_a_part_of_what_it_was_trained_on_is_held_out_all_other_text_is_whole(run: Path) -> None:
  folder = run.parent
  part = evaluate(run, f'--data.source=jsonl:{folder}/notes.jsonl')
  assert part['measured'] == {f'jsonl:{folder}/notes.jsonl': 'held-out part'}
  assert part['tokens'] == evaluate(run)['parts'][0]['tokens']
  everything = evaluate(run, f'--data.source=jsonl:{folder}/notes.jsonl', '--all')
  assert everything['measured'] == {f'jsonl:{folder}/notes.jsonl': 'whole'}
  assert len(everything['groups']) == 12
  assert everything['bytes'] == sum(len(f'note {k} of an author. ') * 9 for k in range(150))
  (folder / 'new.txt').write_text('One document alone.')
  new = evaluate(run, f'--data.source=text:{folder}/new.txt')
  assert new['measured'] == {f'text:{folder}/new.txt': 'whole'} and new['bytes'] == 19


@pytest.fixture(scope='module')
def corp(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A run on the text files of a folder."""
  folder = tmp_path_factory.mktemp('corp')
  for name in ('a', 'b', 'c'):
    (folder / f'{name}.txt').write_text(f'The words of {name}.\n' * 400)
  return train(folder, **{'data.source': f'text:{folder}/*.txt', 'data.tokenizer': 'byte'})


@pytest.mark.exhaustive
def test_text_it_was_trained_on_is_told_by_its_files_however_spelt(corp: Path) -> None:
  folder, link = corp.parent, corp.parent / 'linked'
  own = evaluate(corp)
  link.symlink_to(folder)
  for glob in (f'{folder}/../{folder.name}/*.txt', f'{folder}/[abc].txt', f'{link}/*.txt'):
    found = evaluate(corp, f'--data.source=text:{glob}')
    assert found['measured'] == {f'text:{glob}': 'held-out part'}
    told = [[{**row, 'part': ''} for row in f['groups']] for f in (found, own)]
    assert told[0] == told[1]
  copied = folder / 'copied'  # negative control: other files, to it, are other text
  copied.mkdir()
  shutil.copy(folder / 'a.txt', copied)
  other = evaluate(corp, f'--data.source=text:{copied}/*.txt')
  assert other['measured'] == {f'text:{copied}/*.txt': 'whole'}
  assert other['bytes'] == (folder / 'a.txt').stat().st_size


@pytest.mark.exhaustive
def test_text_shared_in_part_or_cut_otherwise_is_refused(corp: Path) -> None:
  folder = corp.parent.resolve()
  (folder / 'd.md').write_text('Nobody has seen this.')
  for source in (f'text:{folder}/a.txt', f'text:{folder}/*.[tm]*', f'jsonl:{folder}/*.txt'):
    args = (f'--checkpoint={corp}', f'--data.source={source}')
    ran = processes.run('experiments.evaluate', *args)
    assert (ran.returncode, ran.stderr) == (
      2,
      f'error: --data.source={source}: shares {folder}/a.txt with text:{corp.parent}/*.txt, which '
      f'the run was trained on; measure the held-out part by '
      f'--data.source=text:{corp.parent}/*.txt, or everything by --all\n',
    )
  everything = evaluate(corp, f'--data.source=text:{folder}/a.txt', '--all')
  assert everything['bytes'] == (folder / 'a.txt').stat().st_size
  unseen = evaluate(corp, f'--data.source=text:{folder}/d.md')  # negative control
  assert unseen['measured'] == {f'text:{folder}/d.md': 'whole'}


def test_where_its_own_text_is_gone_that_is_told(corp: Path, tmp_path: Path) -> None:
  moved = tmp_path / 'run'
  shutil.copytree(corp, moved)
  [config] = moved.glob('cells/*/config.json')
  config.write_text(config.read_text().replace(f'{corp.parent}/*', f'{tmp_path}/gone/*'))
  (tmp_path / 'new.txt').write_text('One document alone.')
  found = evaluate(moved, f'--data.source=text:{tmp_path}/new.txt')
  [how] = found['measured'].values()
  assert how == f'whole; not compared with text:{tmp_path}/gone/*.txt, which is not here'


def test_a_stride_gives_context(run: Path) -> None:
  plain, fine = evaluate(run), evaluate(run, '--stride=2')
  assert fine['tokens'] == plain['tokens'] and fine['stride'] == 2
  assert fine['nats_per_token'] != plain['nats_per_token']
  ran = processes.run('experiments.evaluate', f'--checkpoint={run}', '--stride=2', '--top=3')
  assert 'more groups' in ran.stdout and f'{fine["nats_per_token"]:.3f}' in ran.stdout
  assert 'each token from 14 tokens before it or more' in ran.stdout


@pytest.mark.exhaustive
def test_a_run_on_ids_has_no_bytes(tmp_path: Path) -> None:
  rng = np.random.default_rng(0)
  for name, count in (('train', 4000), ('val_a', 500), ('val_b', 300)):
    rng.integers(0, 50, count, dtype=np.uint16).tofile(tmp_path / f'{name}.bin')
  source = f"tokens(glob='{tmp_path}/*.bin', eos=49)"
  routed = {'moe.experts': 2, 'moe.router': 'expert_choice', 'moe.allow_noncausal': True}
  run = train(tmp_path, **{'data.source': source, 'model.vocab_size': 50} | routed)
  row, found = last_evaluation(run), evaluate(run)
  assert 'eval/bits_per_byte' not in row and found['bits_per_byte'] is None
  assert found['nats_per_token'] == pytest.approx(row['eval/loss'], rel=1e-6)
  assert [g['tokens'] for g in found['groups']] == [499, 299]
  ahead = 'its routing looks ahead, at tokens it is to predict: no other loss compares with this\n'
  shown = processes.run('experiments.evaluate', f'--checkpoint={run}').stdout
  assert found['looks_ahead'] and shown.endswith(ahead)


def test_mistakes(run: Path) -> None:
  (run.parent / 'empty.jsonl').write_text('{"text": ""}')
  notes = f'jsonl:{run.parent}/notes.jsonl'
  for args, message in {
    ('--stride=17',): "--stride=17: should be from 1 to the run's --data.seq_len=16",
    ('--stride=-1',): "--stride=-1: should be from 1 to the run's --data.seq_len=16",
    ('--data.source=text:no',): f'--data.source=text:no: no file matches in {processes.ROOT}',
    (f'--data.source=jsonl:{run.parent}/empty.jsonl', '--data.group_field='): (
      f'--data.source=jsonl:{run.parent}/empty.jsonl: holds no text to measure'
    ),
    (f'--data.source={notes}', '--data.group_field='): (
      "--data.group_field=: the run was trained with 'author', so its held-out part is another; "
      'leave the flag out, or measure everything by --all'
    ),
    ('--checkpoint=nowhere',): (
      '--checkpoint=nowhere: no config.json in it; give the folder of a run'
    ),
  }.items():
    ran = processes.run('experiments.evaluate', f'--checkpoint={run}', *args)
    assert (ran.returncode, ran.stderr) == (2, f'error: {message}\n'), args
