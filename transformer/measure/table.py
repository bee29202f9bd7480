"""Facts as tables: for a terminal, and as lines of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# name of a fact -> how a person reads it; facts not named here are in --json alone.
TOLD = {
  'tokens_per_s': 'tokens/s',
  'step_ms': 'ms a step',
  'step_ms_quartiles': '  quartiles',
  'bare_step_ms': 'ms a step alone',
  'host_share': "the host's share of a step",
  'batch_tokens_per_s': 'tokens/s of batches',
  'prepare_s': 's to prepare all',
  'learn_s': 's to learn the tokenizer',
  'first_batch_s': 's to the first batch, warm',
  'first_step_s': 's to the first step, warm',
  'warm': '  in stages',
  'cold': 's to the first step, cold, in stages',
  'mfu': 'share of peak (MFU)',
  'gflops_per_s': 'GFLOP/s',
  'peak_gflops_per_s': 'GFLOP/s at most, in this type',
  'memory_share': 'share of memory bandwidth, loops counted once',
  'compile_s': 's to compile',
  'step_peak_mb': 'MiB of a step, compiled',
  'estimate_mb': 'MiB of a step, by formula',
  'step_memory_mb': 'MiB of a step, compiled, in parts',
  'memory_mb': 'MiB beyond the start',
  'peak_rss_mb': 'MiB of the process at most',
  'params': 'parameters',
  'active_params': '  active',
  'dtype': 'compute type',
  'batch': 'batch',
  'shape': 'shape',
  'grouped_product': 'grouped product',
}


def show(facts: dict) -> None:
  """Prints facts of one measurement; with another side, a column for each and the ratio."""
  from rich.console import Console
  from rich.markup import escape
  from rich.table import Table

  out, other = Console(), facts.get('against')
  table = Table(title=facts['what'], title_justify='left')
  table.add_column('')
  table.add_column('ours' if other else '', justify='right', overflow='fold')
  if other:
    told = facts.get('against_flags') or facts.get('against_command') or ''
    table.add_column(escape(told), justify='right', overflow='fold')
  for name, words in TOLD.items():
    if name in facts:
      cells = [cell(side.get(name)) for side in ([facts, other] if other else [facts])]
      table.add_row(words, *map(escape, cells))
  out.print(table)
  if other:
    rounds = ', '.join(f'{r:.2f}' for r in facts['ratio_by_round'])
    out.print(f'ratio {facts["ratio"]:.3f}, by round {rounds}')
  if 'profile' in facts:
    show_profile(out, facts['profile'])
  ran = (facts[name] for name in ('device', 'cpu') if name in facts)
  out.print(f'{", ".join(ran)}, {facts.get("cores", "?")} cores; {_versions(facts)}')


def show_ceilings(ceilings: dict) -> None:
  """Prints what the machine can do."""
  from rich.console import Console
  from rich.table import Table

  kinds = ceilings['matmul_gflops']
  table = Table('GFLOP/s of a product', title='the machine', title_justify='left')
  shapes = list(dict.fromkeys(s for by_shape in kinds.values() for s in by_shape))
  for shape in shapes:
    table.add_column(shape, justify='right')
  for kind, by_shape in kinds.items():
    table.add_row(kind.replace('->', ' → '), *(cell(by_shape.get(s)) for s in shapes))
  out = Console()
  out.print(table)
  out.print(f'memory: {ceilings["memory_gb_per_s"]:,.3g} GB/s')


def show_profile(out: Any, rows: Sequence[dict]) -> None:
  """Prints operations by cost."""
  from rich.markup import escape
  from rich.table import Table

  table = Table('operation', title='costliest operations of a step', title_justify='left')
  for heading in ('ms', 'share', 'calls'):
    table.add_column(heading, justify='right')
  table.add_column('origin', overflow='fold')
  for row in rows:
    numbers = f'{row["ms"]:.3f}', f'{row["share"]:.1%}', f'{row["calls"]:g}'
    table.add_row(escape(row['operation']), *numbers, escape(row['origin']))
  out.print(table)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table of Markdown, numbers to the right."""
  marks = ['---', *['---:'] * (len(headings) - 1)]
  lines = [headings, marks, *(list(map(cell, row)) for row in rows)]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def cell(value: Any) -> str:
  """A fact as it is read in a table."""
  if value is None:
    return ''
  if isinstance(value, float):
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}'
  if isinstance(value, dict):
    return ', '.join(f'{k} {cell(v)}' for k, v in value.items())
  if isinstance(value, (list, tuple)):
    sizes = all(isinstance(v, int) for v in value)
    return (' × ' if sizes else ' to ' if len(value) == 2 else ', ').join(map(cell, value))
  return str(value)


def _versions(facts: dict) -> str:
  return ', '.join(f'{k} {v}' for k, v in facts.get('versions', {}).items())
