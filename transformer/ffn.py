"""The position-wise feed-forward network, the subject of this laboratory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from transformer import count, spec
from transformer.activations import activate
from transformer.config import Config
from transformer.errors import UserError
from transformer.layers import dropout, keep, observe, shard
from transformer.ops.product import Product, product
from transformer.params import initializer

_DROPOUT_SITE = 2  # of a block's; 0 and 1 are its branches'


class Aux(NamedTuple):
  """What a feed-forward network returns beside its output; a dense one nothing.

  losses: by name, a number for each row of the batch, (B,), which is yet to be weighted.
  metrics: by name, sums over the tokens of the batch.
  """

  losses: dict[str, jax.Array]
  metrics: dict[str, jax.Array]


class Experts(NamedTuple):
  """How the rows of an FFN's input belong to experts.

  number: of experts E; every parameter has a leading E. product: (spec, x, w_E…) -> each row of x
  times the matrix of its expert. spread: an array (E, F) -> each row's of it, or what broadcasts
  so. drop: (h, noise_B, rate, site) -> dropout of the rows' hidden units.
  """

  number: int
  product: Product
  spread: Callable[[jax.Array], jax.Array]
  drop: Callable[..., jax.Array]


class FFN(nn.Module):
  """down(f(up(x))), or down(f(gate(x), up(x))) where the activation is gated.

  Vaswani et al. 2017, §3.3; gated: Shazeer 2020. The same weights serve every position.

  d_ff: hidden width F. activation: a variant of ffn.activation. bias: of all projections.
  hidden_layers: 2 puts another F → F layer with its activation before `down` (Gerber 2025).
  dropout: rate, of the last hidden layer. down_init: factor on the initial deviation of `down`.
  branches: how many write into the residual stream that it writes to, for the same deviation.
  product: the matrix product to use. experts: makes it many networks, each for rows of its own.
  """

  d_ff: int
  activation: str = 'gelu'
  bias: bool = False
  hidden_layers: int = 1
  dropout: float = 0.0
  down_init: float = 1.0
  branches: int = 0
  product: Product = product
  experts: Experts | None = None

  @nn.compact
  def __call__(self, x_BTD: jax.Array, noise_B: jax.Array | None = None) -> tuple[jax.Array, Aux]:
    """noise_B: a PRNG key per row trains with dropout; without it the network evaluates.

    With experts x may have any leading dimensions that their product takes.
    """
    if self.d_ff < 1 or self.hidden_layers not in (1, 2):
      raise ValueError(
        f'FFN(d_ff={self.d_ff}, hidden_layers={self.hidden_layers}): d_ff should be 1 or more, '
        'hidden_layers 1 or 2'
      )
    h_BTF = x_BTD
    for stage in ['', 'middle_'][: self.hidden_layers]:
      h_BTF = self._hidden(stage, h_BTF)
    drop = self.experts.drop if self.experts else dropout
    h_BTF = drop(h_BTF, noise_B, self.dropout, _DROPOUT_SITE)
    if self.experts:
      return self._project('down', 'btf,fd->btd', h_BTF, x_BTD.shape[-1]), Aux({}, {})
    y_BTD = self._project('down', 'btf,fd->btd', shard(h_BTF, 'BTF'), x_BTD.shape[-1])
    return shard(y_BTD, 'BTD'), Aux({}, {})

  def _hidden(self, stage: str, x: jax.Array) -> jax.Array:
    """The activation of the projections it takes, (B, T, F)."""
    variant = spec.parse('ffn.activation', self.activation)
    dims = 'btf,fm->btm' if stage else 'btd,df->btf'
    inputs = [self._project(f'{stage}{name}', dims, x, self.d_ff) for name in variant.inputs]
    leaves = {leaf: self._own(f'{stage}{leaf}', (self.d_ff,)) for leaf in variant.leaves}
    h_BTF = activate(variant, inputs, leaves)
    if h_BTF.shape != inputs[0].shape:  # of a user's own: broadcasting would hide it
      raise UserError(
        f'--ffn.activation={self.activation}: gives the shape {h_BTF.shape} for inputs of '
        f'{inputs[0].shape}; it should act on each entry'
      )
    observe(self, f'{stage}hidden', h_BTF)
    keep(self, 'diagnostics', 'inputs', inputs)  # of the last stage, as is what it makes of them
    keep(self, 'diagnostics', 'hidden', h_BTF)
    return h_BTF

  def _project(self, name: str, dims: str, x: jax.Array, width: int) -> jax.Array:
    factor = self.down_init if name == 'down' else 1.0
    weight = self._param(name, (x.shape[-1], width), self.branches, factor)
    y = (self.experts.product if self.experts else self.product)(dims, x, weight)
    if self.bias:
      y += self._own(f'{name}_bias', (width,)).astype(y.dtype)
    observe(self, name, y)
    return y

  def _own(self, name: str, shape: tuple[int, ...]) -> jax.Array:
    """A vector of a network, or each row's of its expert."""
    leaf = self._param(name, shape)
    return self.experts.spread(leaf) if self.experts else leaf

  def _param(self, name: str, shape: tuple[int, ...], *init: Any) -> jax.Array:
    owner, stack = ('experts', (self.experts.number,)) if self.experts else ('ffn', ())
    return self.param(name, initializer(f'{owner}/{name}', *init), stack + shape)


def feed_forward(config: Config, group: count.Group, **module: Any) -> FFN:
  """The feed-forward network of the layers of a group, or one of its experts."""
  f = config.ffn
  own = dict(
    d_ff=group.d_ff,
    activation=count.activation(config, group.stack),
    bias=f.bias,
    hidden_layers=f.hidden_layers,
    dropout=f.dropout,
    down_init=f.down_init,
    branches=count.branches(config, group.stack),
  )
  return FFN(**own | module)
