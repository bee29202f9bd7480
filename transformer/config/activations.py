"""Every activation: its arguments, traits and parameters. Bodies are in transformer/activations.py.

To add one: declare it here, write its body there under the same name. The batteries find it.
"""

from __future__ import annotations

from typing import ClassVar

from transformer import spec
from transformer.axes import Param
from transformer.config.field import setting
from transformer.errors import UserError
from transformer.spec import declare


class Plain:
  """An activation of one projection.

  inputs: the projections of x it is a function of. parameters: the arrays it owns, by name.
  """

  inputs: ClassVar[tuple[str, ...]] = ('up',)
  parameters: ClassVar[dict[str, Param]] = {}

  @property
  def leaves(self) -> dict[str, Param]:
    """Its parameters by the name they have beside up and down."""
    return {f'{self.variant}_{name}': rule for name, rule in self.parameters.items()}


class Gated(Plain):
  """A product of two projections (Dauphin et al. 2017; Shazeer 2020)."""

  inputs: ClassVar[tuple[str, ...]] = ('gate', 'up')


@declare('ffn.activation', 'relu')
class Relu(Plain):
  """max(x, 0) (Nair & Hinton 2010)."""


@declare('ffn.activation', 'gelu')
class Gelu(Plain):
  """x Φ(x), exact (Hendrycks & Gimpel 2016)."""


@declare('ffn.activation', 'gelu_tanh')
class GeluTanh(Plain):
  """GELU by its tanh approximation (Hendrycks & Gimpel 2016, §2), as in GPT-2."""


@declare('ffn.activation', 'silu')
class Silu(Plain):
  """x σ(x), also called Swish-1 (Elfwing 2017; Ramachandran 2017)."""


@declare('ffn.activation', 'relu2')
class Relu2(Plain):
  """max(x, 0)² (So et al. 2021, Primer)."""


@declare('ffn.activation', 'leaky_relu')
class LeakyRelu(Plain):
  """x above 0, slope · x below (Maas et al. 2013)."""

  slope: float = setting(0.01, 'below 0')


@declare('ffn.activation', 'leaky_relu2')
class LeakyRelu2(Plain):
  """The square of a leaky ReLU: relu2 whose units cannot die."""

  slope: float = setting(0.5, 'of the leaky ReLU below 0')


@declare('ffn.activation', 'sigmoid')
class Sigmoid(Plain):
  """1 / (1 + e⁻ˣ) (Rumelhart et al. 1986)."""


@declare('ffn.activation', 'tanh')
class Tanh(Plain):
  """tanh x (LeCun et al. 1998, §4.4)."""


@declare('ffn.activation', 'elu')
class Elu(Plain):
  """x above 0, alpha (eˣ − 1) below (Clevert et al. 2016)."""

  alpha: float = setting(1.0, '−alpha is the limit below 0', low=0.0)


@declare('ffn.activation', 'selu')
class Selu(Plain):
  """ELU scaled to keep mean 0 and variance 1 (Klambauer et al. 2017)."""


@declare('ffn.activation', 'softplus')
class Softplus(Plain):
  """log(1 + eˣ) (Dugas et al. 2001)."""


@declare('ffn.activation', 'softplus2')
class Softplus2(Plain):
  """log(1 + eˣ)²: a smooth relu2."""


@declare('ffn.activation', 'mish')
class Mish(Plain):
  """x tanh(log(1 + eˣ)) (Misra 2020)."""


@declare('ffn.activation', 'prelu')
class PRelu(Plain):
  """x above 0, a learned slope a unit below (He et al. 2015)."""

  parameters: ClassVar[dict[str, Param]] = {'slope': Param('F', init=0.25, decay=False)}


@declare('ffn.activation', 'swish')
class Swish(Plain):
  """x σ(beta · x), beta of each unit learned (Ramachandran et al. 2017)."""

  parameters: ClassVar[dict[str, Param]] = {'beta': Param('F', init=1.0, decay=False)}


@declare('ffn.activation', 'identity')
class Identity(Plain):
  """No nonlinearity: the yardstick."""


@declare('ffn.activation', 'glu')
class Glu(Gated):
  """σ(x W_gate) ⊙ x W_up (Dauphin et al. 2017)."""


@declare('ffn.activation', 'bilinear')
class Bilinear(Gated):
  """x W_gate ⊙ x W_up (Mnih & Hinton 2007; Shazeer 2020)."""


@declare('ffn.activation', 'reglu')
class Reglu(Gated):
  """ReLU(x W_gate) ⊙ x W_up (Shazeer 2020)."""


@declare('ffn.activation', 'geglu')
class Geglu(Gated):
  """GELU(x W_gate) ⊙ x W_up (Shazeer 2020)."""


@declare('ffn.activation', 'swiglu')
class Swiglu(Gated):
  """SiLU(x W_gate) ⊙ x W_up (Shazeer 2020)."""


@declare('ffn.activation', 'relu2_glu')
class Relu2Glu(Gated):
  """ReLU(x W_gate)² ⊙ x W_up (So et al. 2021 with Shazeer 2020)."""


@declare('ffn.activation', 'product')
class Product(Gated):
  """on_gate(x W_gate) ⊙ on_up(x W_up), for any two plain activations."""

  on_gate: str = setting('silu', 'plain activation of the gate', slot='ffn.activation')
  on_up: str = setting('identity', 'plain activation of up', slot='ffn.activation')

  def __post_init__(self):
    for part in self.parts.values():
      if part.inputs != Plain.inputs:
        raise UserError(f'--ffn.activation: product takes plain activations, not {part.variant}')

  @property
  def parts(self) -> dict[str, Plain]:
    """The two activations, by the projection each acts on."""
    return {
      'gate': spec.parse('ffn.activation', self.on_gate),
      'up': spec.parse('ffn.activation', self.on_up),
    }

  @property
  def leaves(self) -> dict[str, Param]:
    parts = self.parts.items()
    return {f'{side}_{leaf}': rule for side, part in parts for leaf, rule in part.leaves.items()}
