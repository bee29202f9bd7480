"""Deep and narrow, or shallow and wide?

Numbers of layers against each other at equal parameters or FLOPs: d_model gives way, the width
ratio of the FFN stays, and heads stay about as wide as the baseline's, so that their number follows
d_model. The plan shows the aspect d_model / layers.

  python -m experiments.shape                           20 runs at equal parameters, minutes
  python -m experiments.shape --match=flops --seeds=0..7
  python -m experiments.shape --match=none              fixed d_model: what more layers buy
"""

from __future__ import annotations

from experiments import lab, paired
from transformer import flags, matching
from transformer.config import Config, resolve
from transformer.errors import UserError

NAME = 'shape'
QUESTION = 'Which depth gives the lowest held-out loss, and which d_model with it?'

paired.define_flags(NAME, vary='1,2,3,4,6', baseline='2', match='params')


def config_of(asked: Config, value: str, budget: int) -> Config:
  """What is asked with another number of layers; d_model gives way to a budget."""
  head_dim = resolve(asked).model.head_dim
  asked = asked.replace(**{'model.num_layers': paired.parsed('model.num_layers', value)})
  if not budget:
    return resolve(asked)
  return matching.match_width(asked.replace(**{'ffn.d_ff': 0}), budget, lab.FLAGS.match, head_dim)


def main() -> int:
  if lab.FLAGS['ffn.d_ff'].present and lab.FLAGS.match != 'none':
    raise UserError('--ffn.d_ff: follows d_model here; use --ffn.ratio, or --match=none')
  return lab.run(paired.experiment(NAME, QUESTION, 'model.num_layers', config_of, 'd_model'))


if __name__ == '__main__':
  flags.run(main)
