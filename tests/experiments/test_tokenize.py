"""experiments.tokenize: how a text is cut, and what a corpus holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import processes

# 'un', 'afford' within words, and 'able' are frequent; 'unafford' and 'affordable' never come up.
WORDS = (
  'un unable unfold unlike unwell undo reaffords reafforded misafford overafford outafford '
  'doable foldable likable readable breakable walkable able'
)
SIZES = ('wordpiece(vocab_size=640)', 'bpe(vocab_size=400)')


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
  lines = (WORDS.replace(' ', '\n') + f'\n{WORDS}\n') * 40
  (tmp_path / 'a.txt').write_text(lines)
  return [f'--data.source=text:{tmp_path}/a.txt', f'--data.cache={tmp_path}/cache']


def told(*args: str) -> dict:
  ran = processes.run('experiments.tokenize', *args, '--json')
  assert ran.returncode == 0, ran.stderr
  return json.loads(ran.stdout)


def test_unaffordable_is_un_afford_able_where_the_corpus_supports_it(corpus: list[str]) -> None:
  args = (f'--data.tokenizer={SIZES[0]}', f'--compare=byte,{SIZES[1]}', '--text=unaffordable')
  wordpiece, byte, bpe = told(*corpus, *args)['tokenizers']
  bare, after_space = wordpiece['cuts']
  assert bare['pieces'] == ['un', 'afford', 'able']
  assert after_space['pieces'] == [' un', 'afford', 'able']
  assert len(set(bare['ids'])) == 3 and bare['ids'][1:] == after_space['ids'][1:]
  assert byte['cuts'][0]['ids'] == [b + 1 for b in b'unaffordable']
  assert bpe['tokenizer'] == SIZES[1] and ''.join(bpe['cuts'][0]['pieces']) == 'unaffordable'
  shown = processes.run('experiments.tokenize', *corpus, *args).stdout
  assert '  un  │ afford │ able' in shown and '  ␣un │ afford │ able' in shown


def test_statistics_are_those_of_the_streams(corpus: list[str], tmp_path: Path) -> None:
  [made] = told(*corpus, '--data.tokenizer=byte')['tokenizers']
  found, text = made['corpus'], (tmp_path / 'a.txt').read_text()
  assert found['bytes'] == len(text.encode())
  assert found['train_tokens'] + found['held_out_tokens'] == len(text) + found['documents'] + 2
  assert found['bytes_per_token'] == 1 and found['unknown_share'] == 0
  assert found['used'] == len(set(text)) and found['never_seen'] == 256 - len(set(text))
  most = max(sorted(set(text)), key=text.count)
  assert found['most_frequent'][0] == {
    'id': ord(most) + 1,
    'text': most,
    'share': text.count(most) / len(text),
  }
  assert found['lengths'][0]['tokens'] == 1
  for name in ('entries', 'tokens'):
    assert abs(sum(row[name] for row in found['lengths']) - 1) < 1e-9


def test_a_tokenizer_that_loses_text_says_so(corpus: list[str], tmp_path: Path) -> None:
  from tokenizers import Tokenizer, models, pre_tokenizers

  made = Tokenizer(models.WordLevel({'[UNK]': 0, 'un': 1, 'able': 2}, unk_token='[UNK]'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.save(str(tmp_path / 't.json'))
  args = (*corpus, f'--data.tokenizer=json:{tmp_path}/t.json', '--text=un able undo')
  [told_of] = told(*args)['tokenizers']
  [cut] = told_of['cuts']
  assert cut['ids'] == [2, 3, 1] and cut['unknown'] == 1 and not cut['comes_back']
  assert told_of['corpus']['unknown_share'] > 0.8
  assert told_of['corpus']['held_out_documents_changed'] > 0
  shown = processes.run('experiments.tokenize', *args).stdout
  assert '3 tokens, 1 of them unknown; decoded it is another text' in shown
  assert '* held-out documents that decode to another text' in shown


def test_mistakes(corpus: list[str]) -> None:
  for flag, message in {
    '--compare=bpee': ": no variant 'bpee'; did you mean bpe?",
    '--data.source=synthetic': ': holds no text; name a source that does',
    '--data.tokenizer=json:no.json': ': cannot be read (No such file or directory); '
    'name a tokenizer.json',
  }.items():
    ran = processes.run('experiments.tokenize', *corpus, flag)
    assert (ran.returncode, ran.stderr) == (2, f'error: {flag}{message}\n')
