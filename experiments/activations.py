"""Which FFN activation is best at equal parameters?

ReLU (baseline), GELU, SiLU, ReLU², the gated GEGLU and SwiGLU, and identity (no nonlinearity) as
the yardstick; a gated FFN has three matrices, so its d_ff is 2/3 of a plain one's.

  python -m experiments.activations                    28 runs, minutes on two cores
  python -m experiments.activations --seeds=0..7       8 paired seeds; adds to what is done
  python -m experiments.activations --vary=relu,swiglu --baseline=relu --match=flops
"""

from __future__ import annotations

from experiments import lab
from transformer import count, flags
from transformer.config import Config, resolve

NAME = 'activations'
QUESTION = 'Which FFN activation gives the lowest held-out loss?'

lab.define_comparison_flags(
  NAME,
  vary='relu,gelu,silu,relu2,geglu,swiglu,identity',
  baseline='relu',
  match='params',
)


def config_of(asked: Config, value: str, budget: int) -> Config:
  """The baseline with another activation, its d_ff solved for the budget of --match."""
  config = resolve(asked.replace(**{'ffn.activation': value}))
  return count.match_d_ff(config, budget, lab.FLAGS.match) if budget else config


def main() -> int:
  return lab.run(lab.comparison(NAME, QUESTION, 'ffn.activation', config_of))


if __name__ == '__main__':
  flags.run(main)
