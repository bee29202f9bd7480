"""Which FFN activation is best at equal parameters?

ReLU (baseline), GELU, SiLU, ReLU², the gated GEGLU and SwiGLU, and identity (no nonlinearity) as
the yardstick; a gated FFN has three matrices, so its d_ff is 2/3 of a plain one's.

  python -m experiments.activations                    28 runs, minutes on two cores
  python -m experiments.activations --seeds=0..7       8 paired seeds; adds to what is done
  python -m experiments.activations --vary=relu,swiglu --baseline=relu --match=flops
  python -m experiments.activations --vary='relu,leaky_relu(0.1),product(tanh, identity)'
  python -m experiments.activations --vary=all         every activation that needs no argument
"""

from __future__ import annotations

from experiments import lab, paired
from transformer import flags
from transformer.config import ratios
from transformer.errors import UserError

NAME = 'activations'
QUESTION = 'Which FFN activation gives the lowest held-out loss?'

paired.define_flags(
  NAME,
  vary='relu,gelu,silu,relu2,geglu,swiglu,identity',
  baseline='relu',
  match='params',
)


def main() -> int:
  replaced = paired.replaced('ffn.activation')
  if not any(ratios(flags.config())) and not flags.config().ffn.d_ff:
    raise UserError('--ffn.ratio=0: leaves no FFN whose activation could be compared')
  return lab.run(paired.experiment(NAME, QUESTION, 'ffn.activation', replaced))


if __name__ == '__main__':
  flags.run(main)
