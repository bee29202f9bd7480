"""What --grid, --zip and --where come to, and what they refuse."""

from __future__ import annotations

import pytest

from launch import space
from transformer.config import Config
from transformer.errors import UserError


def test_a_grid_is_every_combination_and_the_last_setting_varies_fastest() -> None:
  found = space.points('ffn.activation=relu,product(silu, identity); ffn.ratio=2,4; seed=0..2')
  assert len(found) == 12
  assert found[1] == {'ffn.activation': 'relu', 'ffn.ratio': 2.0, 'seed': 1}
  assert found[-1] == {'ffn.activation': 'product(silu, identity)', 'ffn.ratio': 4.0, 'seed': 2}


def test_ranges_hold_both_ends_and_quotes_keep_commas() -> None:
  found = space.axes_of('seed=0,3..5; ffn.ratio=1..3; model.bias=true,false', 'grid')
  assert found == {
    'seed': [0, 3, 4, 5],
    'ffn.ratio': [1.0, 2.0, 3.0],
    'model.bias': [True, False],
  }
  assert space.axes_of('ffn.ratios="2,4","4,2"', 'grid') == {'ffn.ratios': ['2,4', '4,2']}


def test_zipped_values_go_side_by_side() -> None:
  found = space.points('seed=0,1', 'ffn.ratio=2,4; optim.learning_rate=4e-3,2e-3')
  pairs = [(p['ffn.ratio'], p['optim.learning_rate'], p['seed']) for p in found]
  assert pairs == [(2.0, 4e-3, 0), (2.0, 4e-3, 1), (4.0, 2e-3, 0), (4.0, 2e-3, 1)]


@pytest.mark.parametrize(
  ('where', 'kept'),
  [
    ('ffn.ratio<8 or ffn.activation=="gelu"', 5),
    ('not (ffn.ratio == 2 or ffn.ratio == 4)', 2),
    ('ffn.activation in ("gelu", "silu") and 2 < ffn.ratio <= 8', 2),
    ('ffn.ratio * model.d_model <= 4 * 96 - 1 + 1', 4),  # what does not vary is the base's
    ('model.bias', 0),
    ('-ffn.ratio / 2 > -2', 2),
  ],
)
def test_a_condition_keeps_the_points_of_which_it_holds(where: str, kept: int) -> None:
  grid, base = (
    'ffn.activation=relu,gelu; ffn.ratio=2,4,8',
    Config().replace(**{'model.d_model': 96}),
  )
  if kept:
    assert len(space.points(grid, '', where, base)) == kept
    return
  with pytest.raises(UserError, match=r'^--where=model\.bias: leaves none of 6 cells$'):
    space.points(grid, '', where, base)


@pytest.mark.parametrize(
  'where',
  [
    '__import__("os").system("touch owned")',
    '(lambda: 1)()',
    '[s for s in (1, 2)]',
    'ffn.ratio.__class__',
    'open',
    'seed if seed else 1',
    'f"{seed}"',
    '2 ** 9 ** 9',
    '(seed := 1)',
    'seed <',
    'seed < "a"',
    '"a" * 999999999 == "b"',
    'seed / 0 > 1',
  ],
)
def test_nothing_but_comparisons_of_settings_is_understood(where: str) -> None:
  with pytest.raises(UserError, match=r'^--where='):
    space.points('seed=0,1', '', where)


@pytest.mark.parametrize(
  ('grid', 'zipped', 'said'),
  [
    ('', '', "--grid=: names no setting; expected settings and their values, as in 'ffn.act"),
    ('seed', '', "--grid=seed: 'seed' is no setting with values; expected"),
    ('ffn.ratoi=2', '', "--grid=ffn.ratoi=2: no setting 'ffn.ratoi'; did you mean ffn.ratio?"),
    ('ffn.ratio=x', '', "--grid=ffn.ratio=x: 'x' should be a number, as ffn.ratio is"),
    ('model.d_model=1.5', '', "--grid=model.d_model=1.5: '1.5' should be a whole number, as mod"),
    ('ffn.ratio=-1', '', '--grid=ffn.ratio=-1: ffn.ratio: -1.0 is below the least allowed, 0.0'),
    ('ffn.activation=relo', '', '--grid=ffn.activation=relo: ffn.activation=relo: no variant'),
    ('seed=1,1', '', '--grid=seed=1,1: seed has the value 1 twice'),
    ('seed=4..1', '', '--grid=seed=4..1: 4..1 is no range'),
    ('seed=1; seed=2', '', '--grid=seed=1; seed=2: seed is named twice'),
    ('launch.workers=1,2', '', "--grid=launch.workers=1,2: launch.workers changes no run's result"),
    ('seed=0..99999; ffn.ratio=1,2', '', '--grid=seed=0..99999; ffn.ratio=1,2: comes to 200,000'),
    ('seed=1', 'seed=2', '--zip=seed=2: seed is in --grid too'),
    ('', 'seed=1,2; ffn.ratio=1', '--zip=seed=1,2; ffn.ratio=1: its values go side by side, and '),
  ],
)
def test_what_is_wrong_is_told_in_a_line(grid: str, zipped: str, said: str) -> None:
  with pytest.raises(UserError) as e:
    space.points(grid, zipped)
  assert str(e.value).startswith(said)
