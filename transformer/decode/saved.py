"""A run's model and tokenizer, as they were saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformer import metrics, programs
from transformer.checkpoint import load_params
from transformer.config import Config
from transformer.errors import UserError
from transformer.runs import cell_folder, read_config, saved_steps

if TYPE_CHECKING:
  from transformer.data.tokenizers import Byte, Subword


def open_cell(folder: Path, which: str = 'newest') -> tuple[Config, dict, int]:
  """(config, parameters, step) of a checkpoint of a run.

  which: 'newest', 'best' (lowest eval/loss) or a step. Raises UserError naming the flag or folder.
  """
  folder = cell_folder(folder)
  config = read_config(folder)
  programs.keep(config.data.cache)
  step, params = load_params(folder / 'checkpoints', _step(folder, which), config)
  return config, params, step


def _step(folder: Path, which: str) -> int | None:
  if which == 'newest':
    return None
  if which.isdecimal():
    return int(which)
  if which != 'best':
    raise UserError(f'--step={which}: choose newest, best or a step')
  saved = saved_steps(folder / 'checkpoints')
  rows = [r for r in metrics.read(folder / metrics.FILE) if r['step'] in saved]
  rows = [row for row in rows if row.get('eval/loss') is not None]
  return min(rows, key=lambda row: row['eval/loss'])['step'] if rows else None


def open_tokenizer(folder: Path) -> Byte | Subword:
  """The tokenizer a run was trained with. Raises UserError if its data were no text."""
  from transformer.data import tokenizers

  path = cell_folder(folder) / 'tokenizer.json'
  if not path.exists():
    raise UserError(f'--checkpoint={folder}: has no tokenizer.json; it was not trained on text')
  return tokenizers.load(path)
