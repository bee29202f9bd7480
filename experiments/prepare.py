"""Builds tokenizer and packed tokens ahead, so that runs begin at once and need no internet.

  python -m experiments.prepare
  python -m experiments.prepare --data.source='jsonl:corpus/*.jsonl' --data.cache=/shared/isoffn

Takes the settings of a run. Any number of these, and of runs, may start together: one builds under
a lock, the others wait and use it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from transformer import flags
from transformer.config import PRESETS, Config, resolve

if TYPE_CHECKING:
  from transformer.data import Data

flags.define(**PRESETS['pilot'])
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object')


def main() -> int:
  from transformer import data
  from transformer.data import progress

  config = resolve(flags.config())
  with progress.shown() as watch:
    loaded = data.load(config, watch)
  folder = data.prepare(config).folder if loaded.tokenizer else None
  told = _facts(config, loaded, folder)
  if JSON.value:
    print(json.dumps(told, indent=2))
  else:
    _print(told)
  return 0


def _facts(config: Config, loaded: Data, folder: Path | None) -> dict:
  """What was made and where; plain JSON. folder: None where there was nothing to make."""
  from transformer.data import cache

  files = [p for p in folder.iterdir() if p.is_file()] if folder else []
  return {
    'source': config.data.source,
    'tokenizer': config.data.tokenizer if folder else None,
    'fingerprint': loaded.fingerprint,
    'cache': str(cache.root(config.data.cache).absolute()),
    'folder': str(folder.absolute()) if folder else None,
    'disk_bytes': sum(p.stat().st_size for p in files),
    'rows': len(loaded.rows),
    'eval_batches': loaded.eval_batch_count,
    'info': loaded.info,
  }


def _print(told: dict) -> None:
  from rich.console import Console
  from rich.table import Table

  from transformer.analysis.formats import count, short

  info, table = told['info'], Table(box=None, show_header=False, pad_edge=False)
  table.add_column(style='bold', no_wrap=True)
  table.add_column(overflow='fold')
  rows = {
    'source': told['source'],
    'tokenizer': told['tokenizer'] or 'none: the source has ids',
    'fingerprint': told['fingerprint'],
    'vocabulary': count(info['vocab_size']),
    'training tokens': f'{count(info["train_tokens"])}, {count(told["rows"])} rows',
    'held-out tokens': count(info['held_out_tokens']),
  }
  if 'documents' in info:
    rows['documents'] = f'{count(info["documents"])} in {count(info["groups"])} groups'
  if 'train_pairs' in info:
    left_out = info['train_pairs_too_long'] + info['held_out_pairs_too_long']
    rows['pairs'] = (
      f'{count(info["train_pairs"])} to train on, {count(info["held_out_pairs"])} held out; '
      f'{count(left_out)} left out, longer than --data.source_len or --data.seq_len'
    )
  for part in info.get('parts', ()):
    rows[f'  {part["name"]}'] = (
      f'{part["weight"]:.3g} of the rows, {short(part["train_tokens"])} tokens: '
      f'{part["epochs"]:.3g} epochs in this run'
    )
  if told['folder']:
    rows['lies in'] = f'{told["folder"]}, {short(told["disk_bytes"], "B")}'
  for name, value in rows.items():
    table.add_row(name, value)
  Console(width=None if 'COLUMNS' in os.environ else 200).print(table, markup=False)
  if not told['folder']:
    print('nothing to build: this source is read as it is')
    return
  print(
    f'A machine without internet needs ISOFFN_CACHE={told["cache"]} and, of a source or tokenizer '
    'that is files, those files, unchanged and at the same place.'
  )


if __name__ == '__main__':
  flags.run(main)
