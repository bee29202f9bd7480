"""Shows how tokenizers cut a text, and what they make of a corpus.

  python -m experiments.tokenize --text='unaffordable'
  python -m experiments.tokenize --text='unaffordable' --data.source='text:notes/*.md' \\
      --data.tokenizer='wordpiece(vocab_size=8192)' --compare='byte,bpe(vocab_size=8192)'

Tokenizers are trained on the corpus and kept, as for a run. A word shows twice: as it stands, which
is how it is cut at the start of a line, and after a space.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformer import flags, spec
from transformer.config import PRESETS, Config, resolve
from transformer.errors import UserError

if TYPE_CHECKING:
  import numpy as np
  from rich.console import Console

  from transformer.data.packed import Packed

flags.define(**PRESETS['pilot'])
TEXT = flags.script_flag('str', 'text', '', 'text to cut')
COMPARE = flags.script_flag('str', 'compare', '', "more tokenizers, separated by commas or ';'")
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object')
_LENGTHS = (1, 2, 3, 4, 6, 9)  # bytes: the last of each class of the histogram


def main() -> int:
  try:
    TEXT.value.encode()
  except UnicodeEncodeError:
    raise UserError('--text: is not UTF-8') from None
  from transformer import data
  from transformer.data import progress

  config, found = flags.config(), []
  for name in dict.fromkeys([config.data.tokenizer, *spec.split(COMPARE.value)]):
    with progress.shown() as watch:
      asked = _with_tokenizer(config, name)
      made = data.prepare(asked, watch)
    cuts = [_cut(made.tokenizer, text) for text in _texts(TEXT.value)]
    found.append({'tokenizer': asked.data.tokenizer, 'cuts': cuts, 'corpus': _statistics(made)})
  told = {'source': config.data.source, 'text': TEXT.value, 'tokenizers': found}
  if JSON.value:
    print(json.dumps(told, indent=2, ensure_ascii=False))
  else:
    _print(told)
  return 0


def _with_tokenizer(config: Config, name: str) -> Config:
  try:
    return resolve(config.replace(**{'data.tokenizer': name}))
  except UserError as e:
    if name == config.data.tokenizer:
      raise
    raise UserError(str(e).replace('--data.tokenizer', '--compare', 1)) from None


def _texts(text: str) -> list[str]:
  """The text; a single word also after a space, where most vocabularies have another entry."""
  return [text, f' {text}'] if text and len(text.split()) == 1 and text == text.strip() else [text]


def _cut(tokenizer: Any, text: str) -> dict:
  [ids] = tokenizer.encode([text])
  return {
    'pieces': tokenizer.pieces(text),
    'ids': ids.tolist(),
    'unknown': int((ids == tokenizer.unknown).sum()),
    'comes_back': tokenizer.decode(ids) == text,
  }


def _statistics(made: Packed) -> dict:
  """What the tokenizer makes of the corpus, both sides; ends of documents are not counted."""
  import numpy as np

  info, seen = made.info, _counts(made)
  sizes = np.array([len(_written(made.tokenizer, i).encode()) for i in range(len(seen))])
  tokens = int(seen.sum())
  size = info['train_bytes'] + info['held_out_bytes']
  unknown = info.get('train_unknown_tokens', 0) + info.get('held_out_unknown_tokens', 0)
  frequent = np.argsort(-seen, kind='stable')[:10]
  return {
    **{name: info[name] for name in ('documents', 'groups', 'held_out_groups')},
    'bytes': size,
    'train_tokens': info['train_tokens'],
    'held_out_tokens': info['held_out_tokens'],
    'bytes_per_token': size / tokens,
    'vocab_size': info['vocab_size'],
    'used': int((seen > 0).sum()),
    'seen_below_10': int(((seen > 0) & (seen < 10)).sum()),
    'never_seen': int((seen[1:] == 0).sum()),
    'unknown_share': unknown / tokens,
    'held_out_documents_changed': info.get('held_out_lossy_documents', 0),
    'most_frequent': [
      {'id': int(i), 'text': _written(made.tokenizer, i), 'share': float(seen[i] / tokens)}
      for i in frequent
    ],
    'lengths': _histogram(sizes, seen),
  }


def _counts(made: Packed) -> np.ndarray:
  """How often each id comes up in the corpus; id 0 counts as 0."""
  import numpy as np

  seen = np.zeros(made.tokenizer.vocab_size, np.int64)
  for stream in (*made.train, made.held_out):
    for k in range(0, len(stream), 2**22):
      seen += np.bincount(stream[k : k + 2**22], minlength=len(seen))
  seen[0] = 0
  return seen


def _written(tokenizer: Any, i: int) -> str:
  """An entry's own text; '?' for each part of a character."""
  return tokenizer.decode([i]).replace('\ufffd', '?')


def _histogram(sizes: np.ndarray, seen: np.ndarray) -> list[dict]:
  """By length in bytes: share of the vocabulary, and of the corpus."""
  found, low = [], 1
  for high in (*_LENGTHS, 0):
    inside = (sizes >= low) & ((sizes <= high) if high else True)
    bounds = f'{low}' if low == high else f'{low}–{high}' if high else f'{low} or more'
    entries, tokens = inside[1:].mean(), seen[inside].sum() / seen.sum()
    found.append({'bytes': bounds, 'entries': float(entries), 'tokens': float(tokens)})
    low = high + 1
  return found


def _print(told: dict) -> None:
  from rich.console import Console
  from rich.text import Text

  out = Console()
  for made in told['tokenizers'] if told['text'] else ():
    out.print(Text(made['tokenizer'], style='bold'))
    for cut in made['cuts']:
      _print_cut(out, cut)
  _print_statistics(out, told)


def _print_cut(out: Console, cut: dict) -> None:
  """Pieces over their ids, as many in a line as there is room for."""
  from rich.cells import cell_len

  from transformer.data.tokenizers import visible

  lines, pieces, ids = [], '', ''
  for piece, i in zip(cut['pieces'], cut['ids'], strict=True):
    shown = visible(piece)
    width = max(cell_len(shown), len(str(i)))
    if pieces and cell_len(pieces) + width + 3 > out.width - 4:
      lines.append((pieces, ids))
      pieces = ids = ''
    bar = ' │ ' if pieces else ''
    pieces += bar + shown + ' ' * (width - cell_len(shown))
    ids += ' ' * len(bar) + str(i).ljust(width)
  for line in [*lines, (pieces, ids)]:
    out.print(f'  {line[0]}', markup=False, highlight=False)
    out.print(f'  {line[1]}', style='dim', highlight=False)
  note = f'  {len(cut["ids"])} tokens'
  if cut['unknown']:
    note += f', {cut["unknown"]} of them unknown'
  if not cut['comes_back']:
    note += '; decoded it is another text: this tokenizer loses something'
  out.print(note + '\n', highlight=False)


def _print_statistics(out: Console, told: dict) -> None:
  """A column a tokenizer."""
  from rich import box
  from rich.markup import escape
  from rich.table import Table

  from transformer.analysis.formats import count

  made = [t['corpus'] for t in told['tokenizers']]
  table = Table(title=escape(told['source']), title_justify='left', box=box.SIMPLE_HEAD)
  table.add_column('corpus')
  for t in told['tokenizers']:
    table.add_column(escape(t['tokenizer']), justify='right')
  facts = ('documents', 'groups', 'held_out_groups', 'bytes', 'train_tokens', 'held_out_tokens')
  for name in facts:
    table.add_row(name.replace('_', ' '), *(count(m[name]) for m in made))
  table.add_row('bytes per token', *(f'{m["bytes_per_token"]:.2f}' for m in made))
  table.add_section()
  table.add_row('vocabulary', *(count(m['vocab_size']) for m in made))
  names = {'used': 'used', 'seen_below_10': 'seen 1–9 times', 'never_seen': 'never seen'}
  for name, heading in names.items():
    table.add_row(f'  {heading}', *(count(m[name]) for m in made))
  table.add_row('unknown tokens', *(f'{m["unknown_share"]:.3%}' for m in made))
  changed = [count(m['held_out_documents_changed']) for m in made]
  table.add_row('documents changed*', *changed)
  table.add_section()
  for k, row in enumerate(made[0]['lengths']):
    shares = (m['lengths'][k] for m in made)
    cells = (f'{s["entries"]:.0%} / {s["tokens"]:.0%}' for s in shares)
    table.add_row(f'{row["bytes"]} bytes: entries / tokens', *cells)
  table.add_section()
  for k in range(10):
    rows = [m['most_frequent'][k] if k < len(m['most_frequent']) else None for m in made]
    table.add_row('most frequent' if not k else '', *map(_frequent, rows))
  out.print(table)
  if any(m['held_out_documents_changed'] for m in made):
    print('* held-out documents that decode to another text')


def _frequent(row: dict | None) -> str:
  from rich.markup import escape

  from transformer.data.tokenizers import visible

  if row is None:
    return ''
  shown = visible(row['text'])
  return f'{escape(shown)}  {row["share"]:.1%}'


if __name__ == '__main__':
  flags.run(main)
