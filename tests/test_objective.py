"""What a batch of rows asks: masked tokens, the next token, the next of a target."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, parity, reference, reference_source
from transformer import loss, objective, state, step
from transformer.config import Config

ROWS, LENGTH, VOCAB, MASK = 64, 256, 1000, 999


@functools.cache
def encoder(rate: float = 0.15) -> Config:
  return battery.tiny(
    **{'model.architecture': 'encoder', 'model.vocab_size': VOCAB, 'loss.mask_rate': rate},
    **{'data.batch_size': ROWS, 'data.seq_len': LENGTH, 'train.accumulate': 2},
  )


@functools.cache
def compiled(config: Config):
  return jax.jit(lambda tokens, noise_B: objective.example(config, tokens, noise_B))


def rows_of(config: Config, seed: int = 0) -> np.ndarray:
  """Documents of some 32 tokens in rows, and a row that ends in padding."""
  rng = np.random.default_rng(seed)
  shape = config.data.batch_size, config.data.seq_len + 1
  tokens = rng.integers(1, VOCAB - 1, shape)
  tokens = np.where(rng.random(shape) < 1 / 32, 0, tokens)
  tokens[3, 100:] = -1
  return tokens.astype(np.int32)


def keys(seed: int, at: int = 0, rows=range(ROWS)) -> jax.Array:
  """Of rows, as a step of a run draws them."""
  config = encoder()
  fresh = jax.eval_shape(lambda: state.create(config, 0, state.hyper_arrays(config)))
  key = jax.random.key_data(jax.random.key(seed))
  own = step.noise_key(fresh.replace(step=jnp.int32(at), key=key))
  return step.row_noise(config, own, {'rows': jnp.array(rows)})


def hidden(tokens: np.ndarray, noise_B: jax.Array | None, rate: float = 0.15):
  """(what is shown, what is asked for, where) of rows, all (B, T)."""
  asked = jax.device_get(compiled(encoder(rate))(tokens, noise_B))
  return asked.arguments[0], asked.targets_BT, asked.weights_BT > 0


def near(count: int, of: int, chance: float) -> bool:
  """Within four deviations of a binomial."""
  return abs(count - of * chance) < 4 * np.sqrt(of * chance * (1 - chance))


# --- Masked tokens.


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('rate', [0.15, 0.4])
def test_fifteen_in_a_hundred_of_which_eight_in_ten_are_masked(training, rate):
  tokens = rows_of(encoder())
  shown, targets, chosen = hidden(tokens, keys(0) if training else None, rate)
  inputs, words = tokens[:, :-1], tokens[:, :-1] > 0
  assert np.array_equal(targets[words], inputs[words])  # the originals
  assert np.array_equal(shown[~chosen], inputs[~chosen])  # of which the others are shown
  assert not np.any(chosen & ~words)  # neither an end of a document nor padding
  assert near(chosen.sum(), words.sum(), rate)
  masked, kept = chosen & (shown == MASK), chosen & (shown == inputs)
  other = chosen & ~masked & ~kept
  assert near(masked.sum(), chosen.sum(), 0.8 + 0.1 / (VOCAB - 1))
  assert near(kept.sum(), chosen.sum(), 0.1 + 0.1 / (VOCAB - 1))
  assert near(other.sum(), chosen.sum(), 0.1 * (1 - 2 / (VOCAB - 1)))
  drawn = shown[other]
  assert drawn.min() >= 1 and len(set(drawn)) > 0.8 * len(drawn) * (1 - len(drawn) / VOCAB)
  assert not near(chosen.sum(), words.sum(), 0.55 - rate)  # negative control: the other rate
  # In each part of a row alike, not only in sum.
  for part in np.split(np.arange(LENGTH), 8):
    assert near(chosen[:, part].sum(), words[:, part].sum(), rate)


def test_evaluation_hides_the_same_of_the_same_content():
  """Wherever a row lies in a batch, whatever lies beside it; another row is hidden otherwise."""
  tokens = rows_of(encoder())
  first = hidden(tokens, None)
  order = np.random.default_rng(0).permutation(ROWS)
  assert all(
    np.array_equal(x[order], y) for x, y in zip(first, hidden(tokens[order], None), strict=True)
  )
  beside = rows_of(encoder(), seed=1)
  beside[5] = tokens[9]
  chosen, again = first[2], hidden(beside, None)[2]
  assert np.array_equal(chosen[9], again[5])
  assert not np.array_equal(chosen[5], again[5])
  assert len({row.tobytes() for row in chosen}) == ROWS  # no two rows alike
  one = tokens.copy()
  one[9, 20] += 1  # negative control: one token of the content
  assert not np.array_equal(hidden(one, None)[2][9], chosen[9])


def test_training_hides_by_seed_step_and_row():
  tokens = np.tile(rows_of(encoder())[:1], (ROWS, 1))  # of one content
  chosen = hidden(tokens, keys(0))[2]
  assert np.array_equal(chosen, hidden(tokens, keys(0))[2])
  assert len({row.tobytes() for row in chosen}) == ROWS  # rows differ
  for other in (keys(1), keys(0, at=1), keys(0, rows=range(ROWS, 2 * ROWS))):
    assert not np.any(np.all(chosen == hidden(tokens, other)[2], axis=1))
  moved = hidden(tokens, keys(0, rows=range(ROWS)[::-1]))[2]  # a row keeps its own anywhere
  assert np.array_equal(moved, chosen[::-1])


def test_the_loss_is_over_what_was_chosen():
  """Logits may be anything elsewhere; with a share of them given right it falls by that share."""
  asked = compiled(encoder())(rows_of(encoder()), keys(0))
  _, targets, chosen = hidden(rows_of(encoder()), keys(0))
  right = 50.0 * jax.nn.one_hot(targets, VOCAB)
  nats = []
  for where in (chosen, ~chosen):
    logits = jnp.where(where[..., None], right, 0.0)
    total, count = loss.sums(logits, asked.targets_BT, asked.weights_BT)[1]
    assert int(count) == chosen.sum()
    nats.append(float(total))
  assert nats == pytest.approx([0.0, chosen.sum() * np.log(VOCAB)], abs=1e-3)


def test_micro_batches_hide_what_the_whole_batch_hides():
  config = encoder()
  tokens, key = rows_of(config), jax.random.key(3)
  batch = {'tokens': jnp.asarray(tokens), 'rows': jnp.arange(ROWS)}
  whole = compiled(config)(tokens, step.row_noise(config, key, batch)).arguments[0]
  parts = step.micro_batches(batch, 2)
  for a in range(2):
    part = {name: x[a] for name, x in parts.items()}
    got = objective.example(config, part['tokens'], step.row_noise(config, key, part))
    assert np.array_equal(got.arguments[0], whole[a::2])


# --- The next token, of a row and of a target.


def test_a_decoder_by_hand():
  asked = objective.example(battery.tiny(), jnp.array([[0, 5, 6, 0, 7, 8, -1, -1, -1]]))
  inputs, segments = asked.arguments
  assert inputs.tolist() == [[0, 5, 6, 0, 7, 8, -1, -1]]
  assert segments.tolist() == [[1, 1, 1, 2, 2, 2, 2, 2]]
  assert asked.targets_BT.tolist() == [[5, 6, 0, 7, 8, -1, -1, -1]]
  assert asked.weights_BT.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]


PAIRS = battery.tiny(
  **{'model.architecture': 'encoder_decoder', 'data.source_len': 3, 'data.seq_len': 4}
)
# Two pairs: the source, two words behind 0 with the 0 that ends them; three that leave no padding.
PAIR_ROWS = np.array([[7, 9, -1, 0, 5, 6, 0, -1], [4, 4, 4, 0, 1, 2, 3, 0]], np.int32)


def test_pairs_by_hand():
  """Teacher forcing: shifted by one; the closing 0 is asked for, padding is not."""
  asked = objective.example(PAIRS, jnp.asarray(PAIR_ROWS))
  source, target = asked.arguments
  assert source.tolist() == [[7, 9, -1], [4, 4, 4]]
  assert target[:, :3].tolist() == [[0, 5, 6], [0, 1, 2]]
  assert asked.targets_BT.tolist() == [[5, 6, 0, -1], [1, 2, 3, 0]]
  assert asked.weights_BT.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_the_loss_of_pairs_by_hand():
  """Zeros for parameters and log 2 at entry 0 of the logits' bias: p(0) = 2/33, all others 1/33.

  Seven targets, two of them 0: 7 log 33 − 2 log 2.
  """
  config = PAIRS.replace(**{'model.logits_bias': True})
  zeros = jax.tree.map(np.zeros_like, battery.weights(config))
  zeros = battery.poke(zeros, 'unembed/bias', np.log(2))
  batch = {'tokens': jnp.asarray(PAIR_ROWS)}
  found = jax.jit(lambda p: step.eval_step(config, p, batch, lambda x: x))(zeros)
  assert int(found['targets']) == 7
  assert float(found['nats']) == pytest.approx(7 * np.log(33) - 2 * np.log(2), rel=1e-6)


@pytest.mark.parametrize('kind', ['encoder', 'encoder_decoder'])
def test_evaluation_against_the_oracle(kind):
  """Σ nats of a batch with padding, of what `example` shows and asks for."""
  config = battery.tiny(
    **{'model.architecture': kind, 'model.num_layers': 1, 'loss.mask_rate': 0.4},
    **{'data.source_len': 5, 'data.batch_size': 3},
  )
  tokens = battery.tokens(config)
  tokens[1, -3:] = -1
  if kind == 'encoder_decoder':
    tokens = np.concatenate([parity.arguments(config)[0][:, :5], tokens], axis=1, dtype=np.int32)
  weights = battery.weights(config)
  evaluate = jax.jit(lambda p: step.eval_step(config, p, {'tokens': tokens}, lambda x: x))
  asked = jax.device_get(jax.jit(lambda x: objective.example(config, x))(tokens))
  total, count = 0.0, 0
  for first, second, targets, counts in zip(*asked.arguments, *asked[1:], strict=True):
    shown = first >= 0
    if kind == 'encoder':
      logits = reference_source.encoder(config, weights, first[shown], second[shown])
    else:
      logits = reference_source.encoder_decoder(config, weights, first[shown], second)
      shown = slice(None)
    nats, number = reference.cross_entropy(logits, np.where(counts > 0, targets, -1)[shown])
    total, count = total + nats, count + number
  assert count >= 5
  found = evaluate(weights)
  assert [float(found['nats']), float(found['targets'])] == pytest.approx([total, count], rel=1e-5)
  poked = evaluate(battery.stir(weights, 'embed/table'))
  assert abs(float(poked['nats']) - total) > 1e-3  # negative control
