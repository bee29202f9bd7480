"""Continues a prompt with a trained Transformer.

  python -m experiments.train
  python -m experiments.generate --checkpoint=runs/train --prompt='def __init__(self'
  python -m experiments.generate --checkpoint=runs/train --prompt='import' --temperature=0.8

Temperature 0, the default, is greedy.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from transformer import flags
from transformer.errors import UserError

CHECKPOINT = flags.script_flag('str', 'checkpoint', 'runs/train', 'folder of a run')
STEP = flags.script_flag('str', 'step', 'newest', 'checkpoint: newest, best or a step')
PROMPT = flags.script_flag('str', 'prompt', '', 'text to continue; empty: a new document')
TEMPERATURE = flags.script_flag('float', 'temperature', 0.0, 'of the softmax; 0: greedy')
NEW_TOKENS = flags.script_flag('int', 'max_new_tokens', 100, 'tokens at most')
SEED = flags.script_flag('int', 'seed', 0, 'of the draws')


def main() -> int:
  if TEMPERATURE.value and not 1e-6 <= TEMPERATURE.value < math.inf:
    raise UserError(f'--temperature={TEMPERATURE.value}: should be 0, or a number from 1e-6 on')
  if NEW_TOKENS.value < 1:
    raise UserError(f'--max_new_tokens={NEW_TOKENS.value}: below the least allowed, 1')
  try:
    PROMPT.value.encode()
  except UnicodeEncodeError:
    raise UserError('--prompt: is not UTF-8') from None
  import numpy as np

  from transformer import decode

  folder = Path(CHECKPOINT.value)
  config, params, step = decode.open_cell(folder, STEP.value)
  tokenizer = decode.open_tokenizer(folder)
  prompt = np.concatenate([[0], tokenizer.encode([PROMPT.value])[0]])
  if len(prompt) > config.data.seq_len:
    raise UserError(
      f'--prompt: has {len(prompt)} tokens, the model was trained on {config.data.seq_len}'
    )
  print(f'[{CHECKPOINT.value}, step {step}]', file=sys.stderr)
  tokens, shown = list(prompt), ''
  steps = decode.generate(config, params, prompt, NEW_TOKENS.value, TEMPERATURE.value, SEED.value)
  for token in steps:
    tokens.append(token)
    text = tokenizer.decode(np.asarray(tokens))
    if not text.endswith('\ufffd'):  # wait for the rest of a character cut into several tokens
      print(text[len(shown) :], end='', flush=True)
      shown = text
  print(tokenizer.decode(np.asarray(tokens))[len(shown) :])
  return 0


if __name__ == '__main__':
  flags.run(main)
