"""Every variant of every slot: its arguments, help and traits. Bodies live in the slot's room.

Those of ffn.activation are in activations.py, those of data.… in data.py.

To add one: declare it here, write its body there under the same name. The batteries find it.
"""

from __future__ import annotations

from typing import ClassVar

from transformer.config.field import setting
from transformer.errors import UserError
from transformer.spec import declare

# --- model.positions: body in positions.py. `acts_on`: what it changes. `leaves`: its parameters.


@declare('model.positions', 'rotary')
class Rotary:
  """Queries and keys rotated by position (Su et al. 2021, RoFormer)."""

  base: float = setting(10000.0, 'longest wavelength / 2π', low=1.0)
  acts_on: ClassVar[str] = 'heads'
  leaves: ClassVar[tuple[str, ...]] = ()


@declare('model.positions', 'sinusoidal')
class Sinusoidal:
  """Fixed sines and cosines added to the embedding (Vaswani et al. 2017, §3.5)."""

  acts_on: ClassVar[str] = 'embedding'
  leaves: ClassVar[tuple[str, ...]] = ()


@declare('model.positions', 'learned')
class Learned:
  """A learned vector per position added to the embedding (Gehring et al. 2017)."""

  acts_on: ClassVar[str] = 'embedding'
  leaves: ClassVar[tuple[str, ...]] = ('table',)


@declare('model.positions', 'relative')
class Relative:
  """A learned number per head and bucket of distance added to the scores (Raffel et al. 2020).

  In an encoder half of the buckets are for keys ahead of the query.
  """

  buckets: int = setting(32, 'of distance: half of them exact, the others logarithmic', low=2)
  max_distance: int = setting(128, 'from which on all share the last bucket', low=2)
  acts_on: ClassVar[str] = 'scores'
  leaves: ClassVar[tuple[str, ...]] = ('bias',)

  def __post_init__(self):
    if self.max_distance <= self.buckets // 2:
      raise UserError(
        f'--model.positions=relative: max_distance={self.max_distance} should be above '
        f'buckets/2={self.buckets // 2}'
      )


@declare('model.positions', 'alibi')
class Alibi:
  """Scores fall linearly with distance, at a slope per head (Press et al. 2022)."""

  acts_on: ClassVar[str] = 'scores'
  leaves: ClassVar[tuple[str, ...]] = ()


@declare('model.positions', 'none')
class NoPositions:
  """Nothing: the causal mask alone tells order (Haviv et al. 2022; Kazemnejad et al. 2023)."""

  acts_on: ClassVar[str] = 'nothing'
  leaves: ClassVar[tuple[str, ...]] = ()


# --- model.norm: body in layers.py. `leaves`: its parameters.


@declare('model.norm', 'rmsnorm')
class RMSNorm:
  """x / rms(x) · scale (Zhang & Sennrich 2019)."""

  epsilon: float = setting(1e-6, 'added to the mean square', low=0.0)
  leaves: ClassVar[tuple[str, ...]] = ('scale',)


@declare('model.norm', 'layernorm')
class LayerNorm:
  """(x − mean) / std · scale + bias (Ba et al. 2016)."""

  epsilon: float = setting(1e-6, 'added to the variance', low=0.0)
  bias: bool = setting(True, 'whether it has an offset')

  @property
  def leaves(self) -> tuple[str, ...]:
    return ('scale', 'bias') if self.bias else ('scale',)


@declare('model.norm', 'none')
class NoNorm:
  """x itself."""

  leaves: ClassVar[tuple[str, ...]] = ()


# --- optim.name: body in optimizer.py. `mup`: its steps are of the rate's size whatever the
# gradient's. `rate`: what --optim.learning_rate=0 is multiplied by. One with an argument l2 has its
# decay there, in the gradient, and none beside the step.


def _share(default: float, help: str, high: float = 0.9999999) -> float:
  """A number in [0, 1) that the compiled step reads at run time."""
  return setting(default, help, kind='traced', low=0.0, high=high)


_L2 = setting(0.0, 'times the weights, is added to the gradient', kind='traced', low=0.0)


@declare('optim.name', 'adamw')
class AdamW:
  """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

  b1: float = _share(0.9, 'decay of the first moment')
  b2: float = _share(0.95, 'decay of the second moment')
  eps: float = setting(1e-8, 'added to the root of the second moment', kind='traced', low=0.0)
  mup: ClassVar[bool] = True
  rate: ClassVar[float] = 1.0


@declare('optim.name', 'adam')
class Adam(AdamW):
  """Adam as published (Kingma & Ba 2015)."""

  l2: float = _L2


@declare('optim.name', 'sgd')
class Sgd:
  """Stochastic gradient descent with momentum (Sutskever et al. 2013)."""

  momentum: float = _share(0.9, 'decay of the sum of gradients')
  nesterov: bool = setting(False, 'look ahead by one step of the momentum')
  l2: float = _L2
  mup: ClassVar[bool] = False
  # 300 steps of the pilot's shape end at 4.52 nats with a rate of .3, 4.24 with 1, 6.24 with 3.
  rate: ClassVar[float] = 60.0


@declare('optim.name', 'lion')
class Lion:
  """The sign of an interpolated momentum (Chen et al. 2023)."""

  b1: float = _share(0.9, 'weight of the momentum in a step')
  b2: float = _share(0.99, 'decay of the momentum')
  mup: ClassVar[bool] = True
  rate: ClassVar[float] = 0.3  # 3 to 10 times lower than AdamW's (§5)


@declare('optim.name', 'adafactor')
class Adafactor:
  """Second moments as a row times a column (Shazeer & Stern 2018); no first moment.

  Matrices of at least `factor_from` both ways are factored, each layer's on its own.
  """

  power: float = setting(0.8, 'second moments decay by 1 - t^-power', kind='traced', low=0.0)
  clip: float = setting(1.0, "largest rms of a tensor's step", kind='traced', low=1e-9)
  relative: bool = setting(False, 'steps in proportion to the rms of the weights, as published')
  factor_from: int = setting(128, 'least width factored', low=1)
  mup: ClassVar[bool] = False
  rate: ClassVar[float] = 1.0


@declare('optim.name', 'muon')
class Muon:
  """Orthogonalised momentum for matrices between widths (Jordan et al. 2024), Adam for the rest.

  Steps have the rms of Adam's (Liu et al. 2025, §2.2), so that one rate serves both.
  """

  beta: float = _share(0.95, 'decay of the momentum')
  nesterov: bool = setting(True, 'look ahead by one step of the momentum')
  iterations: int = setting(5, 'of Newton-Schulz', low=1, high=50)
  b1: float = _share(0.9, "Adam's decay of the first moment")
  b2: float = _share(0.95, "Adam's decay of the second moment")
  eps: float = setting(1e-8, "Adam's, added to the root of it", kind='traced', low=0.0)
  mup: ClassVar[bool] = False
  rate: ClassVar[float] = 1.0


# --- optim.schedule: body in schedules.py.


def _warmup() -> float:
  return _share(0.1, 'share of the steps in which the rate rises', high=1.0)


def _final(default: float) -> float:
  return _share(default, 'share of the peak at the end', high=1.0)


@declare('optim.schedule', 'constant')
class Constant:
  """Linear warm-up, then the peak."""

  warmup: float = _warmup()


@declare('optim.schedule', 'linear')
class Linear:
  """Linear warm-up, then a straight line down to `final`."""

  warmup: float = _warmup()
  final: float = _final(0.0)


@declare('optim.schedule', 'cosine')
class Cosine:
  """Linear warm-up, then half a cosine down to `final` (Loshchilov & Hutter 2017)."""

  warmup: float = _warmup()
  final: float = _final(0.1)


@declare('optim.schedule', 'inverse_sqrt')
class InverseSqrt:
  """Linear warm-up, then with the root of the step (Vaswani et al. 2017, §5.3)."""

  warmup: float = _warmup()


@declare('optim.schedule', 'wsd')
class Wsd:
  """Warm-up, stable, decay by 1 - x^power: .5 as in Hägele et al. 2024; MiniCPM, Hu et al. 2024."""

  warmup: float = _warmup()
  decay: float = _share(0.2, 'share of the steps in which the rate falls', high=1.0)
  final: float = _final(0.0)
  power: float = setting(1.0, '1: a straight line; below: steep first', kind='traced', low=0.01)


# --- optim.parametrization: body in parametrization.py.


@declare('optim.parametrization', 'standard')
class Standard:
  """One rate for all parameters, scores over the root of the head width."""


@declare('optim.parametrization', 'mup')
class Mup:
  """Rates and scales by which the best rate holds for any width (Yang et al. 2022)."""

  base_d_model: int = setting(256, 'the width at which it equals standard', low=1)
  base_head_dim: int = setting(64, 'the width of a head at which its scores do', low=1)
