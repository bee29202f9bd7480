"""Routers and dispatchers of a mixture of experts, declared. Bodies: routers.py and dispatch.py.

A router decides which tokens meet which experts, in one of three ways (`decision`):
  token: each token chooses experts; expert: each expert chooses tokens; soft: every token is in
  every slot of every expert, by weights.
A dispatcher moves tokens to experts and back, for the decisions it `accepts`.

`causal`: what a token gets does not depend on tokens behind it. Those that are not look ahead in a
causal model, which then may win by what it will not have when it writes.
"""

from __future__ import annotations

from typing import ClassVar

from transformer.config.field import setting
from transformer.spec import declare


class Router:
  """What routers have in common.

  weights: its arrays by the names they have beside experts: True where they are trained, False
  where they are kept between steps and changed by no gradient. losses: which of the balance and z
  losses apply to it.
  """

  decision: ClassVar[str] = 'token'
  causal: ClassVar[bool] = True
  weights: ClassVar[dict[str, bool]] = {'router': True}
  losses: ClassVar[tuple[str, ...]] = ('balance', 'z')

  def choices(self, experts: int, granularity: int) -> int:
    """Experts that a token chooses; granularity splits each into as many."""
    return self.k * granularity


def _jitter() -> float:
  return setting(0.0, "in training the router's input is multiplied by 1 ± this", low=0.0, high=0.9)


@declare('moe.router', 'topk')
class TopK(Router):
  """The k experts of highest score, weighted by it (Shazeer et al. 2017; Lepikhin et al. 2021).

  Scores are a softmax over all experts, or with `after` over the k chosen (Jiang et al. 2024,
  Mixtral), or sigmoids of their own (DeepSeek-AI 2024). Renormalised, the k weights add up to 1; a
  softmax is then the same before and after.
  """

  k: int = setting(2, 'experts a token', low=1)
  score: str = setting(
    'softmax',
    'softmax over all experts; after: over the chosen; sigmoid: of each',
    choices=('softmax', 'after', 'sigmoid'),
  )
  renormalise: bool = setting(True, 'weights of the chosen add up to 1')
  jitter: float = _jitter()


@declare('moe.router', 'switch')
class Switch(Router):
  """The one expert of highest softmax, weighted by it (Fedus et al. 2022, Switch)."""

  jitter: float = _jitter()
  k: ClassVar[int] = 1
  score: ClassVar[str] = 'softmax'
  renormalise: ClassVar[bool] = False


@declare('moe.router', 'bias')
class Bias(Router):
  """Top-k whose balance comes from a bias on the choice alone (Wang et al. 2024, loss-free).

  After each step the bias of an expert with less than the mean load goes up by `rate`, of one with
  more it goes down. Weights are made of scores without it.
  """

  k: int = setting(2, 'experts a token', low=1)
  rate: float = setting(1e-3, 'by which a bias moves a step', kind='traced', low=0.0, high=1.0)
  score: str = setting(
    'sigmoid',
    'softmax over all experts; sigmoid: of each',
    choices=('softmax', 'sigmoid'),
  )
  renormalise: bool = setting(True, 'weights of the chosen add up to 1')
  jitter: float = _jitter()
  weights: ClassVar[dict[str, bool]] = {'router': True, 'router_bias': False}
  losses: ClassVar[tuple[str, ...]] = ('z',)


@declare('moe.router', 'random')
class Random(Router):
  """Top-k of scores that are never trained: the control of what learning to route is worth."""

  k: int = setting(2, 'experts a token', low=1)
  weights: ClassVar[dict[str, bool]] = {'router': False}
  losses: ClassVar[tuple[str, ...]] = ()
  score: ClassVar[str] = 'softmax'
  renormalise: ClassVar[bool] = True
  jitter: ClassVar[float] = 0.0


@declare('moe.router', 'hash')
class Hash(Router):
  """Experts by the id of the token alone, all with weight 1/k (Roller et al. 2021).

  At random, or `balanced`: the most frequent ids of the training data are dealt out one by one to
  the expert that has the least load by then.
  """

  k: int = setting(1, 'experts a token', low=1)
  balanced: bool = setting(False, 'by frequency in the training data')
  losses: ClassVar[tuple[str, ...]] = ()

  @property
  def weights(self) -> dict[str, bool]:
    """The table of a balanced one; another needs none."""
    return {'router_table': False} if self.balanced else {}


@declare('moe.router', 'dense')
class Dense(Router):
  """All experts, weighted by a softmax: what top-k saves on (Jacobs et al. 1991)."""

  losses: ClassVar[tuple[str, ...]] = ('z',)

  def choices(self, experts: int, granularity: int) -> int:
    return experts


@declare('moe.router', 'expert_choice')
class ExpertChoice(Router):
  """Each expert takes the tokens of its group that score highest (Zhou et al. 2022).

  Whether a token is taken depends on the tokens behind it: not causal.
  """

  factor: float = setting(2.0, 'experts a token has on average', low=1e-3)
  jitter: float = _jitter()
  decision: ClassVar[str] = 'expert'
  causal: ClassVar[bool] = False
  losses: ClassVar[tuple[str, ...]] = ('z',)


@declare('moe.router', 'soft')
class Soft(Router):
  """Slots are means over tokens, tokens are means over slots (Puigcerver et al. 2024, Soft MoE).

  Not causal.
  """

  slots: int = setting(
    0, 'of each expert; 0: as many in all as a group has tokens, one at least', low=0
  )
  decision: ClassVar[str] = 'soft'
  causal: ClassVar[bool] = False
  weights: ClassVar[dict[str, bool]] = {'router_slots': True}
  losses: ClassVar[tuple[str, ...]] = ()


# --- moe.dispatch


class Dispatch:
  """What dispatchers have in common. drops: whether a token may find no place."""

  accepts: ClassVar[tuple[str, ...]] = ('token',)
  causal: ClassVar[bool] = True
  drops: ClassVar[bool] = False


@declare('moe.dispatch', 'auto')
class Auto(Dispatch):
  """dropless where tokens choose, capacity elsewhere."""

  accepts: ClassVar[tuple[str, ...]] = ('token', 'expert', 'soft')


@declare('moe.dispatch', 'dense')
class DenseDispatch(Dispatch):
  """The oracle: every expert computes every token, weights of 0 take out what was not chosen."""

  accepts: ClassVar[tuple[str, ...]] = ('token', 'expert')


def _priority() -> str:
  return setting(
    'order',
    'who comes first: order: earlier tokens; choice: first choices (Lepikhin et al. 2021); score: '
    'choices of larger weight (Riquelme et al. 2021 rank tokens by their largest)',
    choices=('order', 'choice', 'score'),
  )


@declare('moe.dispatch', 'capacity')
class Capacity(Dispatch):
  """Each expert has places for moe.capacity_factor · k · T / E tokens of a group; more are dropped.

  By order a token's place depends on those before it alone; by choice and score it is not causal.
  """

  priority: str = _priority()
  accepts: ClassVar[tuple[str, ...]] = ('token', 'expert', 'soft')
  drops: ClassVar[bool] = True

  @property
  def causal(self) -> bool:
    return self.priority == 'order'


@declare('moe.dispatch', 'expert_parallel')
class ExpertParallel(Capacity):
  """capacity, with experts spread over the mesh axis `expert`: tokens go there, all-to-all."""


@declare('moe.dispatch', 'dropless')
class Dropless(Dispatch):
  """Tokens sorted by expert, products over groups of any size (Gale et al. 2023, MegaBlocks)."""
