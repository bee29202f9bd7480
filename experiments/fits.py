"""The largest decoder that trains in so much memory, by what it computes again and how it is cut.

  python -m experiments.fits
  python -m experiments.fits --gib=80 --data.seq_len=2048 --model.dtype=bfloat16
  python -m experiments.fits --write=docs/results/memory.md

Of models of this depth, heads of 64 and these ratios, the widest whose training step fits, by the
compiled program's own account (arguments, scratch, results) on one device; no array is made. Each
--remat (what backward computes again) by each --accumulate (micro-batches a batch is cut into).
Some programs are compiled a cell: a quarter of an hour on two cores.
"""

from __future__ import annotations

import datetime
import functools
import json
import sys
from pathlib import Path

from transformer import count, flags, provenance
from transformer.config import SETTINGS, Config, resolve
from transformer.errors import UserError
from transformer.files import replacing
from transformer.measure import table

_HEAD = 64
_MOST = 512  # heads
flags.define(
  **{
    'model.num_layers': 12,
    'model.vocab_size': 32768,
    'model.dtype': 'float32',
    'data.source': 'synthetic',
    'data.seq_len': 1024,
    'data.batch_size': 16,
  }
)
GIB = flags.script_flag('float', 'gib', 16.0, 'memory of the device')
REMAT = flags.script_flag('str', 'remat', 'none,dots,full', 'values of --model.remat')
ACCUMULATE = flags.script_flag('str', 'accumulate', '1,4,16', 'values of --train.accumulate')
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object a line')
WRITE = flags.script_flag('str', 'write', '', 'a page of Markdown')


def main() -> int:
  asked, found = flags.config(), []
  remats = _listed(REMAT.value)
  for remat in remats:
    if remat not in (known := SETTINGS['model.remat'].metadata['choices']):
      raise UserError(f'--remat={remat}: choose from {", ".join(known)}')
  cuts = [_number(cut) for cut in _listed(ACCUMULATE.value)]
  for cut in cuts:  # before anything is compiled
    _of(asked.replace(**{'train.accumulate': cut}), 1)
  for remat in remats:
    for cut in cuts:
      base = asked.replace(**{'model.remat': remat, 'train.accumulate': cut})
      found.append({'remat': remat, 'accumulate': cut} | largest(base, GIB.value * 2**30))
      print(json.dumps(found[-1]), file=sys.stdout if JSON.value else sys.stderr, flush=True)
  page = _page(asked, found)
  if WRITE.value:
    Path(WRITE.value).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(WRITE.value)) as f:
      f.write(page)
  elif not JSON.value:
    print(page)
  return 0


def _listed(text: str) -> list[str]:
  return [part.strip() for part in text.split(',') if part.strip()]


def _number(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise UserError(f'--accumulate={text}: should be whole numbers from 1 on')
  return int(text)


def largest(base: Config, memory: float) -> dict:
  """The widest model that fits into `memory` bytes, and what it takes; heads 0 if none does."""
  from transformer.measure import compiled as of
  from transformer.measure import footprint

  @functools.cache
  def parts(heads: int) -> dict[str, int]:
    return of.memory(footprint.compiled(_of(base, heads)))

  heads = footprint.widest(lambda n: parts(n)['peak'], memory, _MOST)
  if not heads:
    return {'heads': 0, 'd_model': 0, 'params': 0}
  config = _of(base, heads)
  told = {name: size / 2**30 for name, size in parts(heads).items()}
  shape = {'heads': heads, 'd_model': config.model.d_model, 'params': count.params(config)}
  return shape | {f'{name}_gib': told[name] for name in ('arguments', 'temporaries', 'peak')}


def _of(base: Config, heads: int) -> Config:
  own = {'model.d_model': _HEAD * heads, 'model.num_heads': heads, 'parallel.mesh': 'data:1'}
  return resolve(base.replace(**own))


def _page(asked: Config, found: list[dict]) -> str:
  import jax

  m, d = asked.model, asked.data
  headings = ['`--model.remat`', '`--train.accumulate`', 'd_model', 'parameters']
  headings += ['state, GiB', 'scratch, GiB', 'peak, GiB']
  names = ['remat', 'accumulate', 'd_model', 'params']
  names += ['arguments_gib', 'temporaries_gib', 'peak_gib']
  versions = {k: v for k, v in provenance.versions().items() if k in ('jax', 'jaxlib', 'flax')}
  return '\n'.join(
    [
      f'# The largest decoder that trains in {GIB.value:g} GiB\n',
      f'`python -m experiments.fits {" ".join(sys.argv[1:])}`, '
      f'{datetime.datetime.now(datetime.UTC).date().isoformat()}, commit '
      f'{provenance.git_commit()[:7] or "unknown"}; '
      f'{", ".join(f"{k} {v}" for k, v in versions.items())}.\n',
      f'{m.num_layers} layers, heads of {_HEAD}, vocabulary {m.vocab_size:,}, '
      f'{d.batch_size} sequences of {d.seq_len:,} tokens a step, {m.dtype}, {asked.optim.name}. '
      'The widest model, by heads, whose compiled step fits on one device, by its own account: as '
      f'compiled for {jax.devices()[0].device_kind}.\n',
      table.markdown(headings, [[row.get(name) for name in names] for row in found]),
    ]
  )


if __name__ == '__main__':
  flags.run(main)
