"""Taking turns, with a process of ours and with somebody else's program."""

from __future__ import annotations

import io
import json

import pytest

from tests import battery, processes
from transformer.errors import UserError
from transformer.measure import sides, worker
from transformer.measure.measures import Asked, rate


class Told:
  """A side that says what it was given, turn by turn."""

  def __init__(self, *facts: dict):
    self._facts = iter(facts)

  def turn(self) -> dict:
    return next(self._facts)


def test_the_round_of_the_median_ratio_is_told() -> None:
  ours = Told(*({'tokens_per_s': n} for n in (100, 300, 200)))
  theirs = Told(*({'tokens_per_s': n} for n in (100, 100, 100)))
  facts = sides.in_turns(ours, theirs, 3)
  assert facts['ratio_by_round'] == [1, 3, 2]
  assert (facts['ratio'], facts['tokens_per_s']) == (2, 200)


def test_who_begins_changes_and_of_two_rounds_the_worse_is_told() -> None:
  order = []

  class Counted(Told):
    def turn(self) -> dict:
      order.append(self)
      return super().turn()

  ours, theirs = (Counted(*({'tokens_per_s': n} for n in each)) for each in ((10, 30), (10, 10)))
  facts = sides.in_turns(ours, theirs, 2)
  assert order == [ours, theirs, theirs, ours]
  assert (facts['ratio_by_round'], facts['ratio'], facts['tokens_per_s']) == ([1, 3], 1, 10)


def test_both_sides_share_an_environment() -> None:
  says = 'echo "{\\"tokens_per_s\\": $RATE}"'
  assert sides.Foreign(says, {'RATE': '5'}).turn() == {'tokens_per_s': 5}


def test_a_program_that_tells_only_the_time_of_a_step_is_compared_by_it() -> None:
  ours = Told({'tokens_per_s': 5000, 'step_ms': 20})
  facts = sides.in_turns(ours, Told({'step_ms': 50}), 1)
  assert facts['ratio'] == 2.5


def test_less_memory_and_sooner_starts_count_as_more() -> None:
  assert rate({'step_peak_mb': 10}) > rate({'step_peak_mb': 20})
  assert rate({'first_step_s': 1}) > rate({'first_step_s': 2})
  with pytest.raises(KeyError):
    rate({'loss': 3})


def test_the_last_line_of_a_foreign_program_counts() -> None:
  lines = 'echo hello; echo \'{"tokens_per_s": 1}\'; echo \'{"tokens_per_s": 7}\'; echo bye'
  assert sides.Foreign(lines).turn() == {'tokens_per_s': 7}


@pytest.mark.parametrize('says', ['no', '{"tokens_per_s": 0}', '{"loss": 2}', '[1]'])
def test_a_foreign_program_without_a_rate_is_refused(says: str) -> None:
  with pytest.raises(UserError) as e:
    sides.Foreign(f"echo '{says}'").turn()
  assert str(e.value) == (
    f"--against_command=echo '{says}': status 0, and no line of JSON with a tokens_per_s or "
    f'step_ms above 0; it said: {says}'
  )


def test_what_a_side_refuses_is_said_in_its_words() -> None:
  asked = Asked('train', battery.tiny().replace(**{'parallel.mesh': 'data:4096'})).to_json()
  with (
    pytest.raises(UserError, match=r'^--parallel.mesh=data:4096: needs 4096 devices, 1 present$'),
    sides.Ours(asked, processes.environment()) as side,
  ):
    side.turn()


def test_a_side_that_dies_leaves_a_line() -> None:
  with (
    pytest.raises(UserError, match=r'^--what=train: its process ended with status 1$'),
    sides.Ours({'what': 'train'}, processes.environment()) as side,
  ):
    side.turn()


def test_a_worker_answers_each_line() -> None:
  asked = Asked('memory', battery.tiny())
  answers = io.StringIO()
  told = io.StringIO(json.dumps(asked.to_json()) + '\n{}\n')
  assert worker.serve(told, answers) == 0
  ready, facts = map(json.loads, answers.getvalue().splitlines())
  assert ready == {'ready': 'memory'}
  assert facts['step_peak_mb'] == pytest.approx(sum(facts['step_memory_mb'].values()))
  assert facts['step_memory_mb']['arguments'] > 0 and facts['peak_rss_mb'] > 0
