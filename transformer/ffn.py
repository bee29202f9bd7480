"""The position-wise feed-forward network, the subject of this laboratory."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax

from transformer import spec
from transformer.activations import activate
from transformer.errors import UserError
from transformer.layers import dropout, keep, observe, shard
from transformer.ops.product import Product, product
from transformer.params import initializer

_DROPOUT_SITE = 2  # of a block's; 0 and 1 are its branches'


class Aux(NamedTuple):
  """What a feed-forward network returns beside its output: extra losses, and metrics by name."""

  losses: dict[str, jax.Array]
  metrics: dict[str, jax.Array]


class FFN(nn.Module):
  """down(f(up(x))), or down(f(gate(x), up(x))) where the activation is gated.

  Vaswani et al. 2017, §3.3; gated: Shazeer 2020. The same weights serve every position.

  d_ff: hidden width F. activation: a variant of ffn.activation. bias: of all projections.
  hidden_layers: 2 puts another F → F layer with its activation before `down` (Gerber 2025).
  dropout: rate, of the last hidden layer. down_init: factor on the initial deviation of `down`.
  branches: how many write into the residual stream that it writes to, for the same deviation.
  product: the matrix product to use.
  """

  d_ff: int
  activation: str = 'gelu'
  bias: bool = False
  hidden_layers: int = 1
  dropout: float = 0.0
  down_init: float = 1.0
  branches: int = 0
  product: Product = product

  @nn.compact
  def __call__(self, x_BTD: jax.Array, noise_B: jax.Array | None = None) -> tuple[jax.Array, Aux]:
    """noise_B: a PRNG key per row trains with dropout; without it the network evaluates."""
    if self.d_ff < 1 or self.hidden_layers not in (1, 2):
      raise ValueError(
        f'FFN(d_ff={self.d_ff}, hidden_layers={self.hidden_layers}): d_ff should be 1 or more, '
        'hidden_layers 1 or 2'
      )
    h_BTF = x_BTD
    for stage in ['', 'middle_'][: self.hidden_layers]:
      h_BTF = self._hidden(stage, h_BTF)
    h_BTF = shard(dropout(h_BTF, noise_B, self.dropout, _DROPOUT_SITE), 'BTF')
    y_BTD = self._project('down', 'btf,fd->btd', h_BTF, x_BTD.shape[-1])
    return shard(y_BTD, 'BTD'), Aux({}, {})

  def _hidden(self, stage: str, x: jax.Array) -> jax.Array:
    """The activation of the projections it takes, (B, T, F)."""
    variant = spec.parse('ffn.activation', self.activation)
    dims = 'btf,fm->btm' if stage else 'btd,df->btf'
    inputs = [self._project(f'{stage}{name}', dims, x, self.d_ff) for name in variant.inputs]
    leaves = {
      leaf: self.param(f'{stage}{leaf}', initializer(f'ffn/{stage}{leaf}'), (self.d_ff,))
      for leaf in variant.leaves
    }
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
    init = initializer(f'ffn/{name}', self.branches, factor)
    y = self.product(dims, x, self.param(name, init, (x.shape[-1], width)))
    if self.bias:
      bias = self.param(f'{name}_bias', initializer(f'ffn/{name}_bias'), (width,))
      y += bias.astype(y.dtype)
    observe(self, name, y)
    return y
