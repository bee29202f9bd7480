"""Continues a prompt with a trained Transformer, or answers a source with one that has an encoder.

  python -m experiments.train
  python -m experiments.generate --checkpoint=runs/train --prompt='def __init__(self'
  python -m experiments.generate --prompt='import' --temperature=0.8 --top_p=0.9
  python -m experiments.generate --prompt='import' --beams=4
  python -m experiments.generate --prompt='import' --show_next=10
  python -m experiments.generate --checkpoint=runs/pairs --source='def add(a, b): return a + b'

Temperature 0, the default, is greedy. --beams prints the best continuations with their scores, log
P over the length penalty. --show_next prints the likeliest next tokens instead, with their
probabilities at each of --temperatures.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer import flags
from transformer.errors import UserError

if TYPE_CHECKING:
  import numpy as np

  from transformer.config import Config

CHECKPOINT = flags.script_flag('str', 'checkpoint', 'runs/train', 'folder of a run')
STEP = flags.script_flag('str', 'step', 'newest', 'checkpoint: newest, best or a step')
PROMPT = flags.script_flag('str', 'prompt', '', 'text to continue; empty: a new document')
SOURCE = flags.script_flag('str', 'source', '', 'encoder_decoder: the text to answer')
TEMPERATURE = flags.script_flag('float', 'temperature', 0.0, 'of the softmax; 0: greedy')
TOP_K = flags.script_flag('int', 'top_k', 0, 'draw from the likeliest so many; 0: all')
TOP_P = flags.script_flag('float', 'top_p', 1.0, 'draw from the likeliest that hold this share')
BEAMS = flags.script_flag('int', 'beams', 0, 'width of a beam search; 0: none')
PENALTY = flags.script_flag('float', 'length_penalty', 0.6, 'of beams: log P / ((5 + n) / 6)^this')
NEW_TOKENS = flags.script_flag('int', 'max_new_tokens', 100, 'tokens at most')
SHOW_NEXT = flags.script_flag('int', 'show_next', 0, 'show so many next tokens, write nothing')
TEMPERATURES = flags.script_flag('str', 'temperatures', '0.5,1,2', 'those of --show_next')
SEED = flags.script_flag('int', 'seed', 0, 'of the draws')
_MOST = {'beams': 1000, 'max_new_tokens': 1_000_000, 'seed': 2**31 - 1}


def main() -> int:
  _check()
  from transformer import decode

  folder = Path(CHECKPOINT.value)
  config, params, step = decode.open_cell(folder, STEP.value)
  tokenizer = decode.open_tokenizer(folder)
  if tokenizer.vocab_size > config.model.vocab_size:
    raise UserError(
      f'{folder}: its tokenizer has {tokenizer.vocab_size:,} entries, its model '
      f'{config.model.vocab_size:,}; they are not of one run'
    )
  inputs = _inputs(config, tokenizer)
  decode.check(config, *([ids] if ids is not None else None for ids in inputs))
  print(f'[{CHECKPOINT.value}, step {step}]', file=sys.stderr)
  if SHOW_NEXT.value:
    _show_next(config, params, tokenizer, *inputs)
  elif BEAMS.value:
    _show_beams(config, params, tokenizer, *inputs)
  else:
    _write(config, params, tokenizer, *inputs)
  return 0


def _check() -> None:
  """Raises UserError for a flag out of range."""
  if TEMPERATURE.value and not 1e-6 <= TEMPERATURE.value < math.inf:
    raise UserError(f'--temperature={TEMPERATURE.value}: should be 0, or a number from 1e-6 on')
  for flag, least in ((NEW_TOKENS, 1), (TOP_K, 0), (BEAMS, 0), (SHOW_NEXT, 0), (SEED, 0)):
    if flag.value < least:
      raise UserError(f'--{flag.name}={flag.value}: below the least allowed, {least}')
    if flag.value > (most := _MOST.get(flag.name, flag.value)):
      raise UserError(f'--{flag.name}={flag.value}: above the most allowed, {most}')
  if not 0 < TOP_P.value <= 1:
    raise UserError(f'--top_p={TOP_P.value}: should be above 0 and at most 1')
  if not 0 <= PENALTY.value < math.inf:
    raise UserError(f'--length_penalty={PENALTY.value}: should be a number from 0 on')
  for flag in (BEAMS, TEMPERATURE, TOP_K, TOP_P, NEW_TOKENS) if SHOW_NEXT.value else ():
    if flag.present:
      raise UserError(f'--{flag.name}: is of writing, and --show_next writes nothing; leave it out')
  for flag, of in ((TEMPERATURES, SHOW_NEXT), (PENALTY, BEAMS)):
    if flag.present and not of.value:
      raise UserError(f'--{flag.name}: is of --{of.name}, which is not asked for')
  draws = TEMPERATURE.value or TOP_K.value or TOP_P.value < 1
  if BEAMS.value and draws:
    raise UserError(
      '--beams: looks for the likeliest and draws nothing; leave --temperature, --top_k and '
      '--top_p out'
    )
  if not TEMPERATURE.value and draws:
    raise UserError(
      '--temperature=0: is greedy and draws nothing; --top_k and --top_p need one above 0'
    )
  for flag in (PROMPT, SOURCE):
    try:
      flag.value.encode()
    except UnicodeEncodeError:
      raise UserError(f'--{flag.name}: is not UTF-8') from None


def _inputs(config: Config, tokenizer: Any) -> tuple[np.ndarray, np.ndarray | None]:
  """(prompt, source or None) as ids."""
  import numpy as np

  prompt = np.concatenate([[0], tokenizer.encode([PROMPT.value])[0]])
  if config.model.architecture == 'encoder_decoder':
    if not SOURCE.value:
      raise UserError('--source=: is empty; this model answers a source')
    return prompt, tokenizer.encode([SOURCE.value])[0]
  if SOURCE.value:
    raise UserError('--source: is for an encoder_decoder; give this model a --prompt')
  return prompt, None


def _write(config: Config, params: dict, tokenizer: Any, prompt: Any, source: Any) -> None:
  """Prints the continuation as it comes."""
  import numpy as np

  from transformer import decode

  sampling = decode.Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
  sources = None if source is None else [source]
  parts = decode.stream(config, params, [prompt], NEW_TOKENS.value, sampling, SEED.value, sources)
  tokens, shown = list(prompt), ''
  for tokens_1N in parts:
    tokens += [t for t in tokens_1N[0] if t >= 0]
    text = tokenizer.decode(np.asarray(tokens))
    if not text.endswith('\ufffd'):  # wait for the rest of a character cut into several tokens
      print(text[len(shown) :], end='', flush=True)
      shown = text
  print(tokenizer.decode(np.asarray(tokens))[len(shown) :])
  _say_if_full(config, len(prompt), len(tokens))


def _say_if_full(config: Config, prompt: int, tokens: int) -> None:
  """Says that a text of so many tokens, its prompt's included, ends where its context does."""
  from transformer import decode

  most = decode.most_tokens(config)
  if tokens == most and tokens - prompt < NEW_TOKENS.value:
    print(f'the context of {most} tokens is full', file=sys.stderr)


def _show_beams(config: Config, params: dict, tokenizer: Any, prompt: Any, source: Any) -> None:
  from transformer import decode

  sources = None if source is None else [source]
  found = decode.beam_search(
    *(config, params, [prompt], NEW_TOKENS.value, BEAMS.value, PENALTY.value, sources)
  )
  for place, one in enumerate(found[0], 1):
    cut = '' if one.ended else '  (cut short)'
    print(f'{place}.  {one.score:.3f}{cut}\n{PROMPT.value}{tokenizer.decode(one.ids)}\n')
  cut = [len(one.ids) for one in found[0] if not one.ended]  # all at one length
  if cut:
    _say_if_full(config, len(prompt), len(prompt) + cut[0])


def _show_next(config: Config, params: dict, tokenizer: Any, prompt: Any, source: Any) -> None:
  from rich.console import Console
  from rich.markup import escape
  from rich.table import Table

  from transformer import decode

  try:
    temperatures = [float(part) for part in TEMPERATURES.value.split(',')]
  except ValueError:
    temperatures = [math.nan]
  if not all(t == 0 or 1e-6 <= t < math.inf for t in temperatures):
    raise UserError(
      f"--temperatures={TEMPERATURES.value}: should be numbers from 0 on, as in '0.5,1'"
    )
  found = decode.next_tokens(config, params, prompt, temperatures, SHOW_NEXT.value, source)
  table = Table('next token', 'id')
  for temperature in temperatures:
    table.add_column(f'at {temperature:g}', justify='right')
  for places in zip(*found, strict=True):
    token = places[0][0]
    text = escape(repr(tokenizer.decode([token]))) if token else 'end of document'
    table.add_row(text, str(token), *(f'{share:.4f}' for _, share in places))
  Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == '__main__':
  flags.run(main)
