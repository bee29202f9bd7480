"""How wide should the FFN be?

Ratios d_ff/d_model against each other: at equal parameters or FLOPs, where a wider FFN means a
narrower d_model, or at fixed d_model, where it means more of both.

  python -m experiments.ffn_width                      equal parameters (--match=params)
  python -m experiments.ffn_width --match=none         fixed d_model: what more width buys
  python -m experiments.ffn_width --vary=1,2,4,8 --seeds=0..7 --ffn.activation=swiglu
"""

from __future__ import annotations

import math

from experiments import lab
from transformer import count, flags
from transformer.config import Config, resolve
from transformer.errors import UserError

NAME = 'ffn_width'
QUESTION = 'Which FFN width ratio d_ff/d_model gives the lowest held-out loss?'

lab.define_comparison_flags(
  NAME,
  vary='0.25,1,2,4,8,16',
  baseline='4',
  match='params',
)


def config_of(asked: Config, value: str, budget: int) -> Config:
  """The baseline at another ratio; d_model gives way where --match holds a budget equal."""
  try:
    ratio = float(value)
  except ValueError:
    ratio = math.nan
  if not 0 < ratio < math.inf:
    raise UserError(f'--vary={value}: a ratio is a number above 0, as in --vary=1,2,4,8')
  if budget:
    return count.match_width(asked, ratio, budget, lab.FLAGS.match)
  return resolve(asked.replace(**{'ffn.ratio': ratio, 'ffn.d_ff': 0}))


def main() -> int:
  if lab.FLAGS['ffn.d_ff'].present:
    raise UserError('--ffn.d_ff: is what this experiment varies; use --vary with ratios')
  if lab.FLAGS['model.head_dim'].present and lab.FLAGS.match != 'none':
    raise UserError('--model.head_dim: follows d_model here; set it with --match=none')
  return lab.run(lab.comparison(NAME, QUESTION, 'ffn.ratio', config_of))


if __name__ == '__main__':
  flags.run(main)
