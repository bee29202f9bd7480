"""The state of a run that begins from another one's: fine-tuned or continued."""

from __future__ import annotations

import hashlib

import jax

from transformer.checkpoint import load_params, load_state
from transformer.config import Config
from transformer.errors import UserError
from transformer.parallel import whole
from transformer.params import like
from transformer.runs import Origin
from transformer.state import TrainState


def check_tokenizer(config: Config, origin: Origin, mine: str | None) -> None:
  """Raises UserError unless the run's text was cut into tokens as the origin's was."""
  theirs = origin.tokenizer()
  if theirs == mine:
    return
  where = f'--train.init_from={config.train.init_from}'
  if theirs is None or mine is None:
    which = 'tokens that stand for no text' if theirs is None else 'text, and here is none'
    raise UserError(f'{where}: was trained on {which}; choose its --data.source')
  raise UserError(
    f'{where}: its tokenizer is not the one of this data, so its embedding means other tokens; '
    f'choose --data.tokenizer=json:{origin.folder / "tokenizer.json"}'
  )


def begin(config: Config, origin: Origin, fresh: TrainState) -> tuple[TrainState, dict]:
  """The state a run begins in, and what its provenance says of it.

  fresh: the run's own before step 0, as it is saved. Raises UserError if the origin's does not fit.
  """
  folder, step = origin.folder / 'checkpoints', origin.step
  if config.train.init == 'continue':
    try:
      theirs = load_state(folder / str(step) / 'state', fresh)
    except Exception as e:  # orbax and what it stands on raise all kinds
      reason = str(e).partition('\n')[0][:200] or type(e).__name__
      raise UserError(
        f'--train.init=continue: the state of {config.train.init_from} does not fit ({reason}); '
        'take all of its --optim flags, or --train.init=finetune'
      ) from None
    counters = dict(bad_steps=fresh.bad_steps, skipped=fresh.skipped)
    begun = theirs.replace(key=fresh.key, hyper=fresh.hyper, **counters)
  else:
    _, tree = load_params(folder, step, origin.config)
    weights, kept = like(tree, fresh.params), like(tree, fresh.model_state)
    begun = fresh.replace(params=weights, model_state=kept, ema=weights if fresh.ema else {})
  record = {
    'folder': str(origin.folder.absolute()),
    'step': step,
    'init': config.train.init,
    'identity': origin.identity,
    'params': _digest(begun.params),
  }
  return begun, record


def _digest(params: dict) -> str:
  total = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    total.update(whole(leaf).tobytes())
  return total.hexdigest()[:16]
