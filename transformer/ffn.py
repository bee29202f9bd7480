"""The position-wise feed-forward network, the subject of this laboratory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from transformer import spec
from transformer.activations import BODIES
from transformer.layers import shard
from transformer.ops.product import product
from transformer.params import initializer


class Aux(NamedTuple):
  """What a feed-forward network returns beside its output: extra losses, and metrics by name."""

  losses: dict[str, jax.Array]
  metrics: dict[str, jax.Array]


class FFN(nn.Module):
  """down(f(up(x))), or down(f(gate(x), up(x))) where the activation is gated.

  Vaswani et al. 2017, §3.3; gated: Shazeer 2020. The same weights serve every position.

  d_ff: hidden width F. activation: a variant of ffn.activation. bias: of all projections.
  num_layers: depth of the residual stream it writes to, for the initial scale of `down`.
  product: the matrix product to use.
  """

  d_ff: int
  activation: str = 'gelu'
  bias: bool = False
  num_layers: int = 0
  product: Callable[[str, jax.Array, jax.Array], jax.Array] = product

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, Aux]:
    variant = spec.parse('ffn.activation', self.activation)
    d_model = x_BTD.shape[-1]

    def project(name: str, dims: str, x: jax.Array, shape: tuple[int, int]) -> jax.Array:
      weight = self.param(name, initializer(f'ffn/{name}', self.num_layers), shape)
      y = self.product(dims, x, weight)
      if self.bias:
        bias = self.param(f'{name}_bias', initializer(f'ffn/{name}_bias'), shape[1:])
        y += bias.astype(y.dtype)
      return y

    names = ('gate', 'up') if variant.gated else ('up',)
    hidden = [project(n, 'btd,df->btf', x_BTD, (d_model, self.d_ff)) for n in names]
    arguments = dataclasses.asdict(variant)
    h_BTF = shard(BODIES[variant.variant](*hidden, **arguments), 'BTF')
    y_BTD = project('down', 'btf,fd->btd', h_BTF, (self.d_ff, d_model))
    return shard(y_BTD, 'BTD'), Aux({}, {})
