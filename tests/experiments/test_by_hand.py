"""Every number of the worked examples against plain NumPy, and what is printed against them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests import processes
from transformer import worked
from transformer.worked import PARTS, Matrix


def results(part: str) -> list[Matrix]:
  return [m for step in PARTS[part]() for m in step.matrices if not m.given]


def givens(part: str) -> dict[str, np.ndarray]:
  found = {m.name: np.float64(m.values) for step in PARTS[part]() for m in step.matrices if m.given}
  return {re.sub(r' \(.*', '', name): values for name, values in found.items()}


def agree(part: str, expected: list[np.ndarray]) -> bool:
  found = results(part)
  return len(found) == len(expected) and all(
    m.values.shape == e.shape and np.allclose(m.values, e, atol=2e-5)
    for m, e in zip(found, expected, strict=True)
  )


# --- The arithmetic, written as a textbook has it.


def mixing(given: dict) -> list[np.ndarray]:
  def ffn(z):
    u = given['W₁'] @ z + given['b₁']
    h = np.maximum(u, 0)
    return u, h, given['W₂'] @ h + given['b₂']

  z = given['X'] @ given['A']
  moved = (given['X'] + given['change']) @ given['A'] - z
  return [z, *ffn(z), moved, ffn(z + given['change'])[2] - ffn(z)[2]]


def norm_rows(x: np.ndarray) -> np.ndarray:
  return np.stack([(row - row.mean()) / np.sqrt(((row - row.mean()) ** 2).mean()) for row in x])


def encoder(given: dict) -> list[np.ndarray]:
  x, found, mixed = given['x_BTD'], [], []
  for n in range(4):
    own = slice(2 * n, 2 * n + 2)
    q, k, v = (x @ given[name][:, own] for name in ('W_Q', 'W_K', 'W_V'))
    scores = q @ k.T / 2**0.5
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    mixed.append(weights @ v)
    found += [q, k, v, scores, weights, mixed[-1]]
  joined = np.concatenate(mixed, axis=1)
  out = joined @ given['W₀']
  middle = norm_rows(x + out)
  up = middle @ given['W₁'] + given['b₁']
  down = np.maximum(up, 0) @ given['W₂'] + given['b₂']
  end = norm_rows(middle + down)
  return [
    *found,
    *(joined, out, x + out, middle, up, np.maximum(up, 0), down, middle + down, end),
  ]


def norm(given: dict) -> list[np.ndarray]:
  x = given['x']
  mean, variance = x.mean(1), ((x - x.mean(1)[:, None]) ** 2).mean(1)
  bare = norm_rows(x)
  return [
    np.stack([mean, variance, variance**0.5], axis=1),
    x - mean[:, None],
    bare,
    bare * given['scale'] + given['bias'],
  ]


ORACLES = {'mixing': mixing, 'encoder': encoder, 'norm': norm}


@pytest.mark.parametrize('part', PARTS)
def test_every_number_by_plain_arithmetic(part):
  """With any input or weight moved, the arithmetic no longer agrees."""
  given = givens(part)
  assert agree(part, ORACLES[part](given))
  for name, values in given.items():
    moved = values + 0.25 * np.arange(1, values.size + 1).reshape(values.shape)
    assert not agree(part, ORACLES[part](given | {name: moved})), name


def test_the_known_numbers_of_mixing():
  """First feature 5, 6, 0, 7, 0; Z₁ = X₁ + X₂, …, Z₅ = X₅ + X₁; Z[2,4] = 3 and Z[3,5] = 1."""
  x = worked.X
  z = worked.attend(x, worked.A)
  assert x[0].tolist() == [5, 6, 0, 7, 0]
  assert z[0].tolist() == [11, 6, 7, 7, 5]
  assert z[2 - 1, 4 - 1] == 3 and z[3 - 1, 5 - 1] == 1
  assert np.array_equal(z, x + np.roll(x, -1, axis=1))
  assert set(np.unique(worked.A)) == {0, 1}


@pytest.mark.parametrize('at', range(5))
@pytest.mark.parametrize('feature', range(3))
def test_attention_mixes_positions_and_the_ffn_features(feature, at):
  one = np.zeros_like(worked.X)
  one[feature, at] = 10  # enough for units that are off
  z = worked.attend(worked.X, worked.A)
  moved = worked.attend(worked.X + one, worked.A) != z
  assert set(np.flatnonzero(moved.any(0))) == {at, (at - 1) % 5}
  assert set(np.flatnonzero(moved.any(1))) == {feature}
  through = worked.feed(z + one)[2] != worked.feed(z)[2]
  assert set(np.flatnonzero(through.any(0))) == {at}
  assert through.any(1).sum() > 1


def test_integers_stay_integers_until_softmax():
  whole = [m.name for m in results('encoder') if np.array_equal(m.values, np.round(m.values))]
  assert whole == ['q', 'k', 'v'] * 4
  assert all(np.array_equal(m.values, np.round(m.values)) for m in results('mixing'))
  assert np.array_equal(
    results('norm')[-1].values, [[-4, 2, 1, 2], [-2, 6, -1, -4], [-2, -6, -1, 2]]
  )


def test_shapes_of_the_encoder():
  found = worked.block(worked.TOKENS, worked.block_params())
  assert {name: x.shape for name, x in found.items()} == {
    'x_BTD': (1, 3, 8),
    'query_BTNH': (1, 3, 4, 2),
    'key_BSKH': (1, 3, 4, 2),
    'value_BSKW': (1, 3, 4, 2),
    'scores_BNTS': (1, 4, 3, 3),
    'weights_BNTS': (1, 4, 3, 3),
    'mixed_BTNW': (1, 3, 4, 2),
    'out_BTD': (1, 3, 8),
    'sum_BTD': (1, 3, 8),
    'normed_BTD': (1, 3, 8),
    'up_BTF': (1, 3, 12),
    'h_BTF': (1, 3, 12),
    'down_BTD': (1, 3, 8),
    'ffn_sum_BTD': (1, 3, 8),
    'y_BTD': (1, 3, 8),
  }


# --- From the command line.


def run(*args: str, columns: int = 80) -> str:
  ran = processes.run('experiments.by_hand', *args, COLUMNS=str(columns))
  assert (ran.returncode, ran.stderr) == (0, '')
  return ran.stdout


def rows(matrix: Matrix) -> list[str]:
  whole = np.allclose(matrix.values, np.round(matrix.values), atol=1e-4)
  digits = 0 if whole else 2
  return [' '.join(f'{x:.{digits}f}' for x in np.round(row, digits) + 0.0) for row in matrix.values]


@pytest.mark.parametrize('columns', [80, 120])
def test_what_is_printed_are_those_numbers(columns):
  shown = run(columns=columns)
  flat = ' '.join(shown.split())
  assert 'and to no other feature; the FFN to features 2 and 3 and to no other position.' in flat
  assert 'Each number comes from unrounded ones and is shown to two decimals.' in flat
  assert max(map(len, shown.splitlines())) <= columns
  printed = [' '.join(row.split()) for row in re.findall(r'\[(.*?)\]', shown.replace('−', '-'))]
  every = [m for part in PARTS.values() for step in part() for m in step.matrices]
  assert sorted(printed) == sorted(row for m in every for row in rows(m))
  for line in ('f1 [ 11  6  7  7  5 ]', 'x_BTD (1, 3, 8): the input.', 't1 [  1  7  7  9 ]'):
    assert line in shown.splitlines()


def test_a_worksheet_has_what_is_given_and_boxes_for_the_rest():
  shown = run('--part=mixing', '--blank')
  assert 'f1 [  5  6  0  7  0 ]' in shown.splitlines()
  assert 'f1 [ ____ ____ ____ ____ ____ ]' in shown.splitlines()
  assert '11' not in shown
  assert 'What moves? Add 1 to feature 2' in shown and 'no other feature; the FFN' not in shown
  boxes = sum(m.values.size for m in results('mixing'))
  assert shown.count('____') == boxes
  assert 'encoder' not in shown


def test_a_part_that_is_not_there():
  ran = processes.run('experiments.by_hand', '--part=encodr')
  assert (ran.returncode, ran.stdout) == (2, '')
  assert ran.stderr == 'error: --part=encodr: no such part; did you mean encoder?\n'
