"""What experiments.benchmark measures with --suite, and the page that is written of it."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from transformer import provenance
from transformer.config import PRESETS, Config, resolve
from transformer.errors import UserError
from transformer.files import replacing
from transformer.measure import table

_BASE = {'data.source': 'synthetic', 'model.unroll': True}
_LINEN = (
  f'{sys.executable} -m tests.reference_linen --d_model={{model.d_model}} '
  '--num_layers={model.num_layers} --num_heads={model.num_heads} --vocab_size={model.vocab_size} '
  '--seq_len={data.seq_len} --batch_size={data.batch_size} --dtype={model.dtype} '
  '--seconds={seconds}'
)


@dataclass(frozen=True)
class Row:
  """One measurement. changes: of the preset, by flag name. against: of that, for the other side.

  command: a program in place of it, its braces filled in from the config. one_core: as one of
  several workers.
  """

  title: str
  what: str = 'train'
  preset: str = 'bench'
  changes: dict = field(default_factory=dict)
  against: dict | None = None
  command: str = ''
  one_core: bool = False

  def configs(self) -> tuple[Config, Config | None]:
    """Ours and theirs, resolved."""
    ours = Config().replace(**_BASE | PRESETS.get(self.preset, {}) | self.changes)
    theirs = ours.replace(**self.against) if self.against else None
    return resolve(ours), theirs and resolve(theirs)

  def flags(self) -> str:
    """What gives the same on the command line of experiments.benchmark."""
    shown = [f'--preset={self.preset}'] * bool(self.preset)
    shown += [f'--what={self.what}'] * (self.what != 'train') + ['--one_core'] * self.one_core
    return ' '.join(shown + [f'--{name}={value}' for name, value in self.changes.items()])


_SWIGLU = {'ffn.activation': 'swiglu', 'ffn.d_ff': 512, 'moe.dispatch': 'dropless'}
_TWIN = {'moe.experts': 0, 'moe.dispatch': 'auto', 'ffn.d_ff': 1024}
_SMALL = {'ffn.activation': 'gelu_tanh', 'model.vocab_size': 1024}
_DAILY = {
  **{'model.d_model': 128, 'model.num_layers': 4, 'model.num_heads': 4},
  **{'data.seq_len': 128, 'data.batch_size': 8},
}
_DECODE = {'data.seq_len': 512}
_WIDE = {
  **{'model.d_model': 2048, 'model.num_layers': 8, 'model.num_heads': 16, 'ffn.ratio': 4.0},
  **{'model.vocab_size': 32768, 'data.seq_len': 2048, 'data.batch_size': 16},
  **{'model.dtype': 'bfloat16'},
}
_WIDE_MOE = _WIDE | {
  **{'model.d_model': 1024, 'model.num_layers': 6, 'moe.dispatch': 'dropless'},
  **{'ffn.activation': 'swiglu', 'ffn.d_ff': 2048},
}

SUITES: dict[str, tuple[Row, ...]] = {
  'cpu': (
    Row('dense'),
    Row('dense, float32', changes={'model.dtype': 'float32'}),
    Row('dense, bfloat16', changes={'model.dtype': 'bfloat16'}),
    Row('dense, evaluation', 'evaluate'),
    *(
      Row(f'{n} experts, {dispatch}', changes=_SWIGLU | own, against=_TWIN)
      for n in (8, 16, 32, 64)
      for dispatch in ('dropless', 'capacity')
      for own in ({'moe.experts': n, 'moe.dispatch': dispatch},)
    ),
    Row('pilot, beside plain Linen', preset='pilot', changes=_SMALL, command=_LINEN),
    Row(
      *('pilot on one core, beside plain Linen', 'train', 'pilot', _SMALL),
      command=_LINEN,
      one_core=True,
    ),
    Row('4 layers of 128, beside plain Linen', 'train', 'pilot', _SMALL | _DAILY, command=_LINEN),
    Row('pilot within a run', 'loop', 'pilot', _SMALL),
    Row('pilot from its start', 'start', 'pilot', _SMALL),
    Row('12 layers, scanned', changes={'model.num_layers': 12, 'model.unroll': False}),
    Row('text to batches', 'data', changes={'model.vocab_size': 0}),
    Row('greedy, 16 prompts', 'decode', changes=_DECODE),
    Row('greedy, 1 prompt', 'decode', changes=_DECODE | {'data.batch_size': 1}),
  ),
  'gpu': (
    Row('dense', preset='', changes=_WIDE),
    Row(
      '8 experts',
      preset='',
      changes=_WIDE_MOE | {'moe.experts': 8},
      against={**_TWIN, 'ffn.d_ff': 4096},
    ),
    Row(
      '64 experts',
      preset='',
      changes=_WIDE_MOE | {'moe.experts': 64},
      against={**_TWIN, 'ffn.d_ff': 4096},
    ),
    Row(
      '32 pilots as one program',
      preset='pilot',
      changes=_SMALL | {'launch.together': 32},
      against={'launch.together': 1},
    ),
  ),
}

_COLUMNS = {
  'tokens_per_s': 'tokens/s',
  'step_ms': 'ms a step',
  'step_ms_quartiles': 'quartiles',
  'mfu': 'MFU',
  'compile_s': 's to compile',
  'peak_rss_mb': 'MiB at most',
  'ratio': 'ratio',
  'ratio_by_round': 'by round',
}
_BESIDE = {  # facts that a few rows have, told in a line each
  'loop': ('bare_step_ms', 'host_share'),
  'start': ('first_step_s', 'warm', 'cold'),
  'data': ('batch_tokens_per_s', 'prepare_s', 'learn_s', 'first_batch_s', 'memory_mb'),
}


def run(
  name: str,
  measure: Callable[[Row], dict],
  ceilings: dict,
  path: Path | None,
  command: str,
) -> list[dict]:
  """Measures the rows of a suite one by one; the page is complete after each, as far as it goes.

  A row that fails says why and leaves the others.
  """
  found: list[dict] = []
  for row in SUITES[name]:
    try:
      facts = measure(row)
    except UserError as e:
      facts = {'what': row.what, 'failed': str(e)}
    found.append({'row': row.title, 'flags': row.flags()} | facts)
    print(f'{len(found)} of {len(SUITES[name])}: {row.title}', file=sys.stderr)
    if path:
      path.parent.mkdir(parents=True, exist_ok=True)
      with replacing(path) as f:
        f.write(page(name, found, ceilings, command))
  return found


def page(name: str, found: Iterable[dict], ceilings: dict, command: str) -> str:
  """The results as Markdown, with where they come from."""
  found = list(found)
  versions = ', '.join(f'{k} {v}' for k, v in ceilings['versions'].items())
  when = datetime.datetime.now(datetime.UTC).date().isoformat()
  kinds = ceilings['matmul_gflops']
  shapes = list(dict.fromkeys(s for by_shape in kinds.values() for s in by_shape))
  rates = [
    [kind.replace('->', ' → '), *map(by_shape.get, shapes)] for kind, by_shape in kinds.items()
  ]
  parts = [
    f'# Speed on {name.upper()}\n',
    f'`{command}`, {when}, commit {provenance.git_commit()[:7] or "unknown"}. '
    f'{ceilings["device"]}, {ceilings["cpu"]}, {ceilings["cores"]} cores; {versions}.\n',
    'Ceilings: matrix products in GFLOP/s by shape, and memory at '
    f'{ceilings["memory_gb_per_s"]:.3g} GB/s.\n',
    table.markdown(['operands → result', *shapes], rates),
    'Medians, with quartiles over chunks of steps. MFU is of the fastest product above in the '
    "run's type, on one core of one core's. A ratio is of ours over the other side's, by turns.\n",
    table.markdown(
      ['', *_COLUMNS.values()],
      [[f['row'], *map(f.get, _COLUMNS)] for f in found if 'tokens_per_s' in f],
    ),
    *_lines(found),
    'What gave each row, after `python -m experiments.benchmark`:\n',
    ''.join(f'- {f["row"]}: `{f["flags"]}`{_other(f)}\n' for f in found),
  ]
  return '\n'.join(parts)


def _lines(found: Iterable[dict]) -> Iterable[str]:
  """A line for what does not fit the table, and for what failed."""
  for facts in found:
    if 'failed' in facts:
      yield f'- {facts["row"]}: failed: {facts["failed"]}\n'
    elif names := _BESIDE.get(facts['what']):
      told = (f'{table.TOLD[n].strip()} {table.cell(facts[n])}' for n in names if n in facts)
      yield f'- {facts["row"]}: {"; ".join(told)}\n'


def _other(facts: dict) -> str:
  flags = facts.get('against_flags') or facts.get('against_command', '')
  flags = flags.replace(sys.executable, 'python')  # wherever this one lies
  return f', beside `{flags}`' if flags else ''
