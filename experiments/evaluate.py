"""Measures a trained Transformer on any text, by groups of documents.

  python -m experiments.train
  python -m experiments.evaluate --checkpoint=runs/train
  python -m experiments.evaluate --checkpoint=runs/train --data.source='text:notes/*.md' --stride=16

Text is cut by the run's own tokenizer. Of text the run was trained on, which is told by its files
however they are spelt, the held-out part is measured, of any other all of it. Each token is
predicted from at least seq_len − stride tokens before it, as far as its document reaches back;
stride seq_len, the default, is how training evaluates, a smaller one takes longer and gives each
token more to go by.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer import flags
from transformer.errors import UserError

if TYPE_CHECKING:
  from transformer.config import Config
  from transformer.data import Corpus
  from transformer.evaluate import Score

CHECKPOINT = flags.script_flag('str', 'checkpoint', 'runs/train', 'folder of a run')
STEP = flags.script_flag('str', 'step', 'newest', 'checkpoint: newest, best or a step')
STRIDE = flags.script_flag('int', 'stride', 0, 'tokens between windows; 0: seq_len')
ALL = flags.script_flag('bool', 'all', False, 'also what the run was trained on')
TOP = flags.script_flag('int', 'top', 20, 'groups in the table; the rest is one row')
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object, with every group')
PLUGIN = flags.script_flag('str', 'plugin', '', 'your own file, of a source')
ASKED = {
  name: flags.script_flag('str', name, '', f'{help}; empty: as in the run')
  for name, help in {
    'data.source': 'text to measure',
    'data.text_field': 'field of the text in jsonl and parquet',
    'data.group_field': 'their field of the group',
    'data.cache': 'folder of prepared data',
  }.items()
}
_GROUP = 60  # characters shown of a group's name


def main() -> int:
  from transformer import count, decode

  folder = Path(CHECKPOINT.value)
  run, params, step = decode.open_cell(folder, STEP.value)
  if run.model.architecture != 'decoder':
    raise UserError(
      f'--checkpoint={folder}: is of --model.architecture={run.model.architecture}; only a decoder '
      'has a probability for each token of a text'
    )
  config, length = _asked(run), run.data.seq_len
  stride = STRIDE.value or length
  if not 1 <= stride <= length:
    raise UserError(f"--stride={stride}: should be from 1 to the run's --data.seq_len={length}")
  if TOP.value < 1:
    raise UserError(f'--top={TOP.value}: below the least allowed, 1')
  if _is_text(config):
    measured, scores = _text(run, config, params, stride)
  else:
    measured, scores = _tokens(run, config, params, stride)
  if not scores:
    raise UserError(f'--data.source={config.data.source}: holds no text to measure')
  told = {'checkpoint': str(folder), 'step': step, 'source': config.data.source}
  told |= {'measured': measured, 'seq_len': length, 'stride': stride}
  told |= {'looks_ahead': count.looks_ahead(run)} | _facts(scores)
  if JSON.value:
    print(json.dumps(told, indent=2))
  else:
    _print(told)
  return 0


def _asked(run: Config) -> Config:
  """The run's config with what the flags ask of the data."""
  from transformer import plugin, spec

  plugin.load(PLUGIN.value)
  config = run.replace(**{name: flag.value for name, flag in ASKED.items() if flag.present})
  source = spec.parse('data.source', config.data.source)
  return config.replace(**{'data.source': spec.canonical(source)})


def _is_text(config: Config) -> bool:
  from transformer import spec

  return getattr(spec.parse('data.source', config.data.source), 'text', True)


def _text(run: Config, config: Config, params: dict, stride: int) -> tuple[dict, dict]:
  """(part -> what of it was measured, (part, group) -> Score) of a source of text."""
  from transformer import data, decode, evaluate
  from transformer.data import corpus, progress

  tokenizer = decode.open_tokenizer(Path(CHECKPOINT.value))
  corpora = {text.name or config.data.source: text for text in data.corpora(config)}
  trained, gone = ({}, []) if ALL.value else _trained_on(run, config.data.cache)
  own = {name: _own(name, text, trained, run, config) for name, text in corpora.items()}
  sides: dict[str, corpus.Split | None] = {}

  def documents(watch: data.Watch) -> Iterator[tuple[tuple[str, str], str]]:
    whole = None in sides.values()  # of which nobody has counted the documents
    total = 0 if whole else sum(side.counts['held_out_documents'] for side in sides.values())
    done = 0
    for name, side in sides.items():
      for group, document in (own[name] or corpora[name]).texts():
        if side is None or side.holds_out(group):
          watch('measuring documents', done, total)
          done += 1
          yield (name, _label(group)), document

  with progress.shown() as watch:
    watch('reading', 0, 0)
    sides |= {
      name: text and corpus.split(text, run.data.held_out, name) for name, text in own.items()
    }
    scores = evaluate.score_text(config, params, tokenizer, documents(watch), stride)
  whole = 'whole' + f'; not compared with {", ".join(gone)}, which is not here' * bool(gone)
  return {name: 'held-out part' if side else whole for name, side in sides.items()}, scores


def _trained_on(run: Config, cache: str) -> tuple[dict[str, Corpus], list[str]]:
  """The run's sources of text as they are now; and those that cannot be found any more."""
  from transformer import data, spec

  declared = spec.parse('data.source', run.data.source)
  parts = [part for part, _ in declared.weighted] if declared.variant == 'mix' else [declared]
  found, gone = {}, []
  for name in map(spec.canonical, parts):
    try:
      [found[name]] = data.corpora(run.replace(**{'data.source': name, 'data.cache': cache}))
    except UserError:
      gone.append(name)
  return found, gone


def _own(
  name: str, text: Corpus, trained: dict[str, Corpus], run: Config, config: Config
) -> Corpus | None:
  """What the run was trained on if this is the same, however it is spelt; None if it is other text.

  Raises UserError if it is cut otherwise, or only in part the same: groups, which decide what is
  held out, are then other ones.
  """
  for corpus in trained.values():
    if _real(corpus.state) == _real(text.state):
      return corpus
  for other, corpus in trained.items():
    shared = _files(corpus.state) & _files(text.state)
    if not shared and name != other:
      continue
    for field in ('text_field', 'group_field'):
      asked, was = getattr(config.data, field), getattr(run.data, field)
      if asked != was:
        raise UserError(
          f'--data.{field}={asked}: the run was trained with {was!r}, so its held-out part is '
          'another; leave the flag out, or measure everything by --all'
        )
    raise UserError(
      f'--data.source={name}: shares {min(shared, default="text")} with {other}, which the run was '
      f'trained on; measure the held-out part by --data.source={other}, or everything by --all'
    )
  return None


def _real(state: Any) -> Any:
  """A corpus's state with every file under its one true path."""
  if _is_file(state):
    return [os.path.realpath(state[0]), *state[1:]]
  return [_real(part) for part in state] if isinstance(state, (list, tuple)) else state


def _files(state: Any) -> set[str]:
  """The files that a corpus's state tells of, as data.file_states writes them."""
  if _is_file(state):
    return {os.path.realpath(state[0])}
  return set().union(*map(_files, state)) if isinstance(state, (list, tuple)) else set()


def _is_file(state: Any) -> bool:
  return (
    isinstance(state, (list, tuple))
    and list(map(type, state)) == [str, int, int]
    and os.path.isabs(state[0])
  )


def _tokens(run: Config, config: Config, params: dict, stride: int) -> tuple[dict, dict]:
  """The same of files of ids, or synthetic data: their held-out streams, one group each."""
  from transformer import data, evaluate

  loaded, scores = data.load(config), {}
  for k, stream in enumerate(loaded.held_out):
    cut = (stream[i : i + 2**16] for i in range(0, len(stream), 2**16))
    ids = (loaded.recode(c.astype('int32')) if loaded.recode else c for c in cut)
    chunks = (((config.data.source, f'stream {k}'), c) for c in ids)
    scores |= evaluate.score(config, params, chunks, stride)
  return {config.data.source: 'held-out part'}, scores


def _label(group: str) -> str:
  """A group's name on one line; a long one, which may be a whole text, is cut and told by hash."""
  line = ' '.join(group.split())
  if len(line) <= _GROUP:
    return line
  return f'{line[: _GROUP - 10]}… {hashlib.sha256(group.encode()).hexdigest()[:8]}'


def _facts(scores: dict[tuple[str, str], Score]) -> dict:
  """Totals, per part of a mixture, and per group from the largest on; plain JSON."""
  parts = list(dict.fromkeys(part for part, _ in scores))
  groups = sorted(scores.items(), key=lambda item: -item[1].tokens)
  return _numbers(scores.values()) | {
    'parts': [
      {'part': part, **_numbers([s for (p, _), s in groups if p == part])} for part in parts
    ],
    'groups': [{'part': p, 'group': group, **_numbers([s])} for (p, group), s in groups],
  }


def _numbers(scores: Iterable[Score]) -> dict:
  """Sums, and means over tokens and bytes; no bits/byte where there is no text."""
  scores = list(scores)
  nats, tokens = sum(s.nats for s in scores), sum(s.tokens for s in scores)
  size = sum(s.bytes for s in scores)
  found: dict[str, Any] = {'tokens': tokens, 'bytes': size}
  found['nats_per_token'] = nats / tokens if tokens else None
  found['bits_per_byte'] = nats / math.log(2) / size if size else None
  return found


def _print(told: dict) -> None:
  from rich import box
  from rich.console import Console
  from rich.markup import escape
  from rich.table import Table

  what = ', '.join(f'{part} ({how})' for part, how in told['measured'].items())
  table = Table(
    title=f'{told["checkpoint"]}, step {told["step"]}, on {escape(what)}',
    title_justify='left',
    box=box.SIMPLE_HEAD,
  )
  table.add_column('group', overflow='fold')
  for heading in ('tokens', 'bytes', 'nats/token', 'bits/byte'):
    table.add_column(heading, justify='right', no_wrap=True)
  mixed = len(told['parts']) > 1
  shown, rest = told['groups'][: TOP.value], told['groups'][TOP.value :]
  for row in shown:
    name = f'{row["part"]}: {row["group"]}' if mixed else row['group']
    table.add_row(escape(name), *_cells(row))
  if rest:
    table.add_row(f'{len(rest):,} more groups', *_cells(_join(rest)))
  table.add_section()
  for row in told['parts'] if mixed else ():
    table.add_row(escape(row['part']), *_cells(row))
  table.add_row('all', *_cells(told), style='bold')
  Console().print(table)
  context = told['seq_len'] - told['stride']
  print(f'each token from {context} tokens before it or more, as far as its document reaches back')
  if told['looks_ahead']:
    print('its routing looks ahead, at tokens it is to predict: no other loss compares with this')


def _join(rows: list[dict]) -> dict:
  """One row of several."""
  tokens, size = (sum(row[name] for row in rows) for name in ('tokens', 'bytes'))
  nats = sum(row['nats_per_token'] * row['tokens'] for row in rows)
  bits = nats / math.log(2) / size if size else None
  return {'tokens': tokens, 'bytes': size, 'nats_per_token': nats / tokens, 'bits_per_byte': bits}


def _cells(row: dict) -> list[str]:
  from transformer.analysis.formats import count, loss

  size = count(row['bytes'] or None)
  return [count(row['tokens']), size, loss(row['nats_per_token']), loss(row['bits_per_byte'])]


if __name__ == '__main__':
  flags.run(main)
