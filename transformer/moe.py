"""A mixture of experts in place of a feed-forward network: MoE(x) = Σ gᵢ(x) Eᵢ(x).

A router decides, a dispatcher moves, the experts compute: they are one FFN with a leading E.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer import count
from transformer.config import Config, routing
from transformer.dispatch import Place, dispatch
from transformer.ffn import Aux, Experts, feed_forward
from transformer.layers import dropped, fold, keep, kept, shard
from transformer.ops.grouped import Shape, block_rows
from transformer.ops.places import rows_in_blocks
from transformer.ops.product import Product, product
from transformer.params import initializer
from transformer.routers import ExpertChoice, Routing, TokenChoice, Tokens, route

_JITTER_SITE, _SHARED_SITE = 7, 9  # the experts' own dropout has the FFN's


class MoE(nn.Module):
  """The experts of the layers of a group, their router, and those that all tokens share.

  config: resolved. product: the matrix product to use.
  """

  config: Config
  group: count.Group
  product: Product = product

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    ids_BT: jax.Array,
    layer: jax.Array,
    noise_B: jax.Array | None = None,
  ) -> tuple[jax.Array, Aux]:
    """ids_BT: of the tokens; below 0 is padding, which goes to no expert. layer: its number.

    noise_B: a PRNG key per row trains: with dropout and jitter, and with the capacity of training.
    Aux: see `losses` and `sums`.
    """
    c, E = self.config, self.group.experts
    B, T, D = x_BTD.shape
    length = routing.group_length(c, T)
    groups = (B * T // length, length)
    x_GTD, weights = x_BTD.reshape(*groups, D), self._weights()
    seen = Tokens(
      self._logits(weights, self._jittered(x_BTD, noise_B).reshape(*groups, D)),
      (ids_BT >= 0).reshape(groups),
      ids_BT.reshape(groups),
      weights,
      layer,
      routing.choices(c) if routing.router(c).decision == 'token' else 0,
      max(1, routing.capacity(c, length, training=noise_B is not None)),  # of a short sequence
      E,
    )
    routed = route(routing.router(c), seen)
    place = Place(E, seen.capacity, self.product)
    moved = dispatch(routing.dispatch(c), routed.decision, x_GTD, place)

    def drop(h: jax.Array, noise_B: jax.Array | None, rate: float, site: int) -> jax.Array:
      if noise_B is None or not rate:
        return h
      mask_BTF = kept(noise_B, rate, site, (T, h.shape[-1]))
      return dropped(h, moved.send(mask_BTF.reshape(*groups, -1)), rate)

    experts = Experts(E, moved.product, moved.spread, drop)
    network = feed_forward(c, self.group, experts=experts, name='experts')
    y_BTD = moved.back(network(moved.rows, noise_B)[0]).reshape(x_BTD.shape)
    if c.moe.shared_experts:
      wide = dict(d_ff=c.moe.shared_experts * self.group.d_ff, product=self.product)
      y_BTD += feed_forward(c, self.group, **wide, name='shared')(
        x_BTD, fold(noise_B, _SHARED_SITE)
      )[0]
    keep(self, 'diagnostics', 'routing', routed.decision)
    return shard(y_BTD, 'BTD'), Aux(
      {name: _of_rows(seen, LOSSES[name](seen, routed), B) for name in routing.router(c).losses},
      sums(seen, routed, moved.dropped),
    )

  def _jittered(self, x_BTD: jax.Array, noise_B: jax.Array | None) -> jax.Array:
    """What the router reads: in training times 1 ± jitter, uniform (Fedus et al. 2022, §2.4)."""
    jitter = getattr(routing.router(self.config), 'jitter', 0.0)
    if noise_B is None or not jitter:
      return x_BTD

    def draw(key: jax.Array) -> jax.Array:
      return jax.random.uniform(key, x_BTD.shape[1:], minval=1 - jitter, maxval=1 + jitter)

    return x_BTD * jax.vmap(draw)(fold(noise_B, _JITTER_SITE)).astype(x_BTD.dtype)

  def _logits(self, weights: dict[str, jax.Array], x_GTD: jax.Array) -> jax.Array | None:
    """Scores in float32, whatever the rest computes in (Fedus et al. 2022, §2.4)."""
    x_GTD = x_GTD.astype(jnp.float32)
    if 'router' in weights:
      return product('gtd,de->gte', x_GTD, weights['router'])
    if 'router_slots' in weights:
      return product('gtd,dec->gtec', x_GTD, weights['router_slots'])
    return None

  def _weights(self) -> dict[str, jax.Array]:
    """The router's arrays by name, trained or not."""
    shapes = count.shapes(self.config) | count.kept(self.config)
    paths = {n: f'{self.group.name}/ffn/{n}' for n in routing.router(self.config).weights}
    return {n: self.param(n, initializer(path), shapes[path][1:]) for n, path in paths.items()}


def grouped_shapes(config: Config, shares: int) -> set[Shape]:
  """Of the grouped products of a resolved config, where a batch is shared out over devices."""
  found = set()
  for group in count.groups(config) if routing.dispatch(config).variant == 'dropless' else ():
    if group.experts:
      D, F, length = config.model.d_model, group.d_ff, count.length(config, group)
      between = {(F, F)} if config.ffn.hidden_layers > 1 else set()
      for rows in {config.data.batch_size, config.data.batch_size // config.train.accumulate}:
        choices = rows // shares * length * routing.choices(config)
        block = block_rows(choices, group.experts)
        M = rows_in_blocks(choices, group.experts, block)
        for widths in {(D, F), (F, D)} | between:
          found.add(Shape(M, block, group.experts, *widths, config.model.dtype))
  return found


def balance_loss(seen: Tokens, routed: Routing) -> jax.Array:
  """E · Σₑ fₑ Pₑ of each group, (G,): 1 where the load is even, E where one expert has all.

  fₑ is the share of the group's choices that fall on e, whether they find a place or not, of which
  a token has R; Pₑ the mean over its tokens of the router's probability of e, which alone has a
  gradient (Fedus et al. 2022, eq. 4 to 6, there R = 1). Padding counts in neither.
  """
  taken_GE = jnp.sum(_load(seen, routed), axis=1)
  share_GE = taken_GE / jnp.maximum(jnp.sum(taken_GE, axis=1, keepdims=True), 1.0)
  return seen.experts * jnp.sum(share_GE * _mean(seen, routed.probs_GTE), axis=-1)


def z_loss(seen: Tokens, routed: Routing) -> jax.Array:
  """Mean over a group's tokens of log² Σₑ exp(scoreₑ), (G,) (Zoph et al. 2022, ST-MoE, eq. 5)."""
  log_z_GT = jax.nn.logsumexp(seen.logits_GTE, axis=-1)
  return _mean(seen, jnp.square(log_z_GT)[..., None])[..., 0]


LOSSES = {'balance': balance_loss, 'z': z_loss}


def sums(seen: Tokens, routed: Routing, dropped: jax.Array) -> dict[str, jax.Array]:
  """What routing health is made of, summed over the batch, float32.

  load (E,): choices that fall on each expert, dropped ones included; under soft routing the weight
  that tokens give to its slots. dropped: choices without a place; where experts choose, tokens that
  none takes. tokens: all that are not padding. entropy: of the router's probabilities, in nats;
  log_z: log Σₑ exp(scoreₑ); both over tokens, and where there are scores.
  """
  there_GT, load_GTE = seen.present_GT.astype(jnp.float32), _load(seen, routed)
  if isinstance(routed.decision, ExpertChoice):
    dropped = jnp.sum(there_GT * (jnp.sum(load_GTE, axis=-1) == 0.0))
  found = {
    'load': jnp.sum(load_GTE, axis=(0, 1)),
    'dropped': dropped.astype(jnp.float32),
    'tokens': jnp.sum(there_GT),
  }
  if routed.probs_GTE is not None:
    entropy_GT = jnp.sum(jax.scipy.special.entr(routed.probs_GTE), axis=-1)
    found['entropy'] = jnp.sum(entropy_GT * there_GT)
    axes = tuple(range(2, seen.logits_GTE.ndim))
    log_z_GT = jax.nn.logsumexp(seen.logits_GTE, axis=axes)
    found['log_z'] = jnp.sum(log_z_GT * there_GT)
  return jax.lax.stop_gradient(found)


def _load(seen: Tokens, routed: Routing) -> jax.Array:
  """How much of each token falls on each expert, (G, T, E) of 0, 1 or a weight."""
  decision = routed.decision
  if isinstance(decision, TokenChoice):
    on_GTRE = decision.experts_GTR[..., None] == jnp.arange(seen.experts)
    return jnp.sum(on_GTRE.astype(jnp.float32), axis=2)
  if isinstance(decision, ExpertChoice):
    G, E, _ = decision.tokens_GEC.shape
    at = jnp.arange(G)[:, None, None], decision.tokens_GEC, jnp.arange(E)[:, None]
    taken_GEC = (decision.weights_GEC > 0).astype(jnp.float32)
    return jnp.zeros((*seen.present_GT.shape, E)).at[at].add(taken_GEC)
  return routed.probs_GTE * seen.present_GT[..., None]


def _of_rows(seen: Tokens, loss_G: jax.Array, rows: int) -> jax.Array:
  """(B,): the mean over a row's groups, each weighed by its tokens that are not padding."""
  tokens_BG = jnp.sum(seen.present_GT.astype(jnp.float32), axis=1).reshape(rows, -1)
  total_B = jnp.sum(loss_G.reshape(rows, -1) * tokens_BG, axis=1)
  return total_B / jnp.maximum(jnp.sum(tokens_BG, axis=1), 1.0)


def _mean(seen: Tokens, z_GTE: jax.Array) -> jax.Array:
  """Over the tokens of each group that are not padding; 0 where there are none."""
  there_GT1 = seen.present_GT.astype(jnp.float32)[..., None]
  return jnp.sum(z_GTE * there_GT1, axis=1) / jnp.maximum(jnp.sum(there_GT1, axis=1), 1.0)
