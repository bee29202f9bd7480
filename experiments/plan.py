"""An experiment as it is planned: its cells, and the table that --dry_run prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cells import Cell, state
from transformer import count, matching
from transformer.config import Config

if TYPE_CHECKING:
  from rich.console import Console

  from launch.search import Search


@dataclass(frozen=True)
class Experiment:
  """A question with its cells.

  name: of the script and of its folder under runs/. asked: what the flags say. base: the resolved
  config of the baseline. cells: in the order variants are to be listed. variable: the setting that
  varies, '' if none. baseline: the variant others are compared with. match: the kind of budget held
  equal, budget: its size, absorb: what gives way for it. apart: variants that keep another one.
  by: of a sweep, the settings its report groups cells by, separated by commas. search: what makes
  the cells as it goes; those here are then its corners.
  """

  name: str
  question: str
  asked: Config
  base: Config
  cells: Sequence[Cell]
  variable: str = ''
  baseline: str = ''
  match: str = ''
  budget: int = 0
  absorb: str = ''
  apart: Sequence[str] = ()
  by: str = ''
  search: Search | None = None


def show(experiment: Experiment, workdir: Path, out: Console) -> None:
  """Cells, parameters and FLOPs, without jax."""
  from rich import box
  from rich.table import Table

  from transformer.analysis.formats import short
  from transformer.analysis.results import AHEAD

  table = Table(
    title=experiment.question, title_justify='left', box=box.SIMPLE_HEAD, pad_edge=False
  )
  groups: dict[str, list[Cell]] = {}
  for cell in experiment.cells:
    groups.setdefault(cell.variant, []).append(cell)
  ahead = {v for v, cells in groups.items() if count.looks_ahead(cells[0].config)}
  rows = {variant: _row(experiment, cells[0].config) for variant, cells in groups.items()}
  shown = _shown(list(rows.values()))
  table.add_column('variant', overflow='fold')
  for heading in ('seeds', *shown):
    table.add_column(heading, justify='right', no_wrap=True)
  table.add_column('state')
  for variant, cells in groups.items():
    states = [state(cell.folder(workdir)) for cell in cells]
    told = ', '.join(f'{states.count(s)} {s}' for s in dict.fromkeys(states))
    name = variant + AHEAD * (variant in ahead)
    table.add_row(name, str(len(cells)), *(rows[variant][k] for k in shown), told)
  out.print(table)
  if ahead:
    out.print(f'{AHEAD.strip()} routing looks ahead: a lower loss of it is void')
  if 'aspect' in shown:
    out.print('aspect: d_model / layers')
  pairs = experiment.base.model.architecture == 'encoder_decoder'
  amount = count.train_rows if pairs else count.train_tokens
  trained = short(sum(amount(cell.config) for cell in experiment.cells))
  flops = sum(count.train_flops(cell.config) for cell in experiment.cells)
  if search := experiment.search:
    each = sorted(count.train_flops(cell.config) for cell in experiment.cells)
    told = ' to '.join(dict.fromkeys(short(f * search.trials, 'FLOP') for f in each))
    out.print(
      f'{search.trials} trials between these corners, {told} in all unless pruned, in {workdir}; '
      'nothing was run'
    )
    return
  many = len(experiment.cells)
  out.print(
    f'{many} cell{"s" if many > 1 else ""}, {trained} training {"pairs" if pairs else "tokens"}, '
    f'{short(flops, "FLOP")}, in {workdir}; nothing was run'
  )


_NONE = '–'
_COLUMNS = {  # column of the plan -> the one that must differ between variants for it to be shown
  'layers': 'layers',
  'd_model': '',
  'aspect': 'layers',
  'heads': 'heads',
  'encoder d_ff': 'encoder d_ff',
  'd_ff': '',
  'ratio': 'ratio',
  'experts': 'experts',  # shown with all that they tell wherever there are any
  'parameters': '',
  'active': 'experts',
  'FLOPs/token': '',
  'off budget': 'off budget',
}


def _shown(rows: list[dict[str, str]]) -> list[str]:
  """The columns that say something of these rows."""

  def says(column: str, telling: str) -> bool:
    if column == 'encoder d_ff' and all(row[column] == row['d_ff'] for row in rows):
      return False
    found = {row[telling] for row in rows} if telling else set()
    return not telling or len(found) > 1 or (telling == 'experts' and found != {_NONE})

  return [column for column, telling in _COLUMNS.items() if says(column, telling)]


def _row(experiment: Experiment, config: Config) -> dict[str, str]:
  """Column -> what it says of one variant."""
  model, budget = config.model, experiment.budget
  off = matching.BUDGETS[experiment.match](config) / budget - 1 if budget else 0.0
  told = (
    f'{model.num_layers:,}',
    f'{model.d_model:,}',
    f'{model.d_model / model.num_layers:.3g}',
    f'{model.num_heads} × {model.head_dim}',
    f'{count.encoder_d_ff(config) or 0:,}',
    f'{config.ffn.d_ff:,}',
    f'{config.ffn.ratio:.3g}',
    _experts(config),
    f'{count.params(config):,}',
    f'{count.active_params(config):,}',
    f'{count.flops_per_token(config):,}',
    f'{100 * off:+.2f} %',
  )
  return dict(zip(_COLUMNS, told, strict=True))


def _experts(config: Config) -> str:
  """'2 of 8': how many compute a token."""
  experts, used = count.experts(config)
  return f'{used:.3g} of {experts:,}' if experts else _NONE
