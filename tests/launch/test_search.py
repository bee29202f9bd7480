"""Trials are asked, run as cells, pruned and told, by whichever launcher there is."""

from __future__ import annotations

import functools
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launch_fakes import FAKE_WORKER, ROOT, executions, until
from rich.console import Console

from launch import local, ranges, search, sweep
from launch.cells import Claim, write_config
from launch.search import Search, Study
from transformer.config import Config
from transformer.errors import UserError

optuna = pytest.importorskip('optuna')

SPACE = 'optim.learning_rate=log(1e-4,1e-2); ffn.ratio=int(1,16)'
ASKED = Config().replace(**{'train.steps': 9, 'train.eval_every': 1})


def _search(
  trials: int = 6, space: str = SPACE, prune: str = 'none', sampler: str = 'tpe', **changes
):
  cell_of = functools.partial(sweep.cell_of, ASKED.replace(**changes))
  return Search(ranges.parse(space), trials, sampler, prune, 0, cell_of)


def _study(workdir: Path, asked: Search) -> Study:
  workdir.mkdir(exist_ok=True)
  return Study(asked, workdir, lambda cells: None)


def _told(workdir: Path) -> dict:
  return json.loads((workdir / 'search.json').read_text())


def _finish(cell, workdir: Path) -> None:
  """A loss that is least at ratio 8."""
  write_config(cell, workdir)
  loss = 3.0 + (cell.config.ffn.ratio - 8) ** 2 / 100
  Claim.acquire(cell.folder(workdir)).commit({'eval/loss': loss, 'step': 9})


def _evaluated(cell, workdir: Path, *losses: float) -> None:
  write_config(cell, workdir)
  rows = [{'step': i, 'eval/loss': loss} for i, loss in enumerate(losses, 1)]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (cell.folder(workdir) / 'metrics.jsonl').write_text(text)


def _run(workdir: Path, asked: Search) -> list[str]:
  """All trials one at a time, each done at once; names of the cells in order."""
  study, names = _study(workdir, asked), []
  while cells := study.look([], 1):
    names += [cell.name for cell in cells]
    for cell in cells:
      _finish(cell, workdir)
  study.write()
  return names


def test_trials_are_cells_and_their_losses_are_told(workdir: Path) -> None:
  names = _run(workdir, _search(8))
  told = _told(workdir)
  assert (len(names), len(set(names)), len(told['told'])) == (8, 8, 8)
  assert {t['state'] for t in told['told']} == {'complete'}
  for trial in told['told']:
    ratio, rate = trial['params']['ffn.ratio'], trial['params']['optim.learning_rate']
    assert (1 <= ratio <= 16, 1e-4 <= rate <= 1e-2) == (True, True)
    assert trial['loss'] == pytest.approx(3.0 + (ratio - 8) ** 2 / 100)
  assert set(told['importance']) == {'optim.learning_rate', 'ffn.ratio'}


def test_a_search_in_sittings_makes_the_trials_of_one_that_is_not_disturbed(workdir: Path) -> None:
  """Whoever asks, trial n is the same; TPE learns from the same losses."""
  whole = _run(workdir, _search(14))  # of which ten are random
  other = workdir.with_name('other')
  names = []
  for trials in (1, 12, 13, 14):
    names += _run(other, _search(trials))
  assert names == whole


def test_a_trial_under_way_is_neither_lost_nor_repeated(workdir: Path) -> None:
  first = _study(workdir, _search(4))
  begun = first.look([], 2)
  assert len(begun) == 2
  second = _study(workdir, _search(4))  # the first was killed
  assert [c.folder_name for c in second.cells] == [c.folder_name for c in begun]
  more = second.look([], 3)
  assert [c.folder_name for c in more[:2]] == [c.folder_name for c in begun]
  assert len(more) == 3
  for cell in more:
    _finish(cell, workdir)
  last = second.look([], 3)
  assert len(last) == 1
  _finish(last[0], workdir)
  assert second.look([], 3) == []
  assert [t['state'] for t in _told(workdir)['told']] == ['complete'] * 4
  assert _study(workdir, _search(4)).look([], 3) == []


def test_a_trial_whose_launcher_died_before_it_was_drawn_is_drawn(workdir: Path) -> None:
  study = _study(workdir, _search(2))
  study._study.ask()  # in the journal, without parameters
  cells = _study(workdir, _search(2)).look([], 2)
  undisturbed = _study(workdir.with_name('other'), _search(2)).look([], 2)
  assert [c.folder_name for c in cells] == [c.folder_name for c in undisturbed]


def test_two_launchers_share_the_trials(workdir: Path) -> None:
  one, two = (_study(workdir, _search(3)) for _ in range(2))
  ours, theirs = one.look([], 2), two.look([], 2)
  assert len({c.folder_name for c in (*ours, *theirs)}) == 2  # the second sees the first's
  for cell in ours:
    _finish(cell, workdir)
  (third,) = one.look([], 2)
  _finish(third, workdir)
  assert {c.folder_name for c in two.look([], 2)} <= {third.folder_name}
  assert (one.look([], 2), two.look([], 2)) == ([], [])
  assert [t['state'] for t in _told(workdir)['told']] == ['complete'] * 3


def test_a_half_written_line_of_the_journal_is_cut_off(workdir: Path) -> None:
  study = _study(workdir, _search(2))
  begun = study.look([], 1)
  with open(workdir / 'search.jsonl', 'a') as f:
    f.write('{"op_code": 4, "work')
  again = _study(workdir, _search(2)).look([], 2)
  assert again[0].folder_name == begun[0].folder_name


def test_median_stops_a_cell_that_is_worse_than_most(workdir: Path) -> None:
  study = _study(workdir, _search(8, prune='median', sampler='random'))
  good = study.look([], 5)
  for cell in good:
    _evaluated(cell, workdir, *[3.0] * 9)
    _finish(cell, workdir)
  poor, fair = study.look([], 2)
  _evaluated(poor, workdir, 4.0)
  _evaluated(fair, workdir, 2.5)
  study.look([poor.folder_name, fair.folder_name], 0)
  assert json.loads((poor.folder(workdir) / 'pruned.json').read_text())['loss'] == 4.0
  assert not (fair.folder(workdir) / 'pruned.json').exists()
  study.look([fair.folder_name], 0)  # it has heard, and left
  study.write()
  states = [t['state'] for t in _told(workdir)['told']]
  assert states == ['complete'] * 5 + ['pruned', 'running']
  assert _told(workdir)['told'][5]['loss'] == 4.0


def test_asha_lets_the_best_third_of_a_rung_go_on(workdir: Path) -> None:
  study = _study(workdir, _search(9, prune='asha', sampler='random'))
  cells = study.look([], 9)
  names = [c.folder_name for c in cells]
  for i, cell in enumerate(cells):  # each worse than all before it
    _evaluated(cell, workdir, 4.0 + i / 10)
    study.look(names, 0)
  stopped = [(c.folder(workdir) / 'pruned.json').exists() for c in cells]
  assert stopped == [False] + [True] * 8
  _evaluated(cells[0], workdir, 4.0, 9.0, 9.0)  # alone on the next rung
  study.look(names, 0)
  assert not (cells[0].folder(workdir) / 'pruned.json').exists()


def test_points_that_cannot_run_have_failed_and_the_others_go_on(workdir: Path) -> None:
  asked = _search(8, 'model.num_heads=int(1,7)', sampler='random', **{'model.d_model': 64})
  study = _study(workdir, asked)
  while cells := study.look([], 1):
    _finish(cells[0], workdir)
  study.write()
  for trial in _told(workdir)['told']:
    runs = 64 % trial['params']['model.num_heads'] == 0
    assert trial['state'] == ('complete' if runs else 'fail')
    assert runs or 'does not divide --model.d_model=64' in trial['refused']
  assert {t['state'] for t in _told(workdir)['told']} == {'complete', 'fail'}


def test_the_same_point_twice_is_run_once(workdir: Path) -> None:
  names = _run(workdir, _search(6, 'model.bias=choice(true,false)', sampler='random'))
  assert len(names) == len(set(names)) == 2
  assert [t['state'] for t in _told(workdir)['told']] == ['complete'] * 6


def test_a_search_runs_on_this_machine(workdir: Path) -> None:
  study = _study(workdir, _search(5))
  console = Console(file=io.StringIO(), width=100)
  outcome = local.run(workdir, [], 2, console, FAKE_WORKER, source=study)
  assert len(outcome.done) == 5
  assert set(executions(workdir).values()) == {1}
  assert [t['state'] for t in _told(workdir)['told']] == ['complete'] * 5
  again = local.run(workdir, [], 2, console, FAKE_WORKER, source=_study(workdir, _search(5)))
  assert (again.done, sum(executions(workdir).values())) == ([], 5)


KILLED = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(ROOT)]!r}
import test_search
from pathlib import Path
from launch import local
workdir = Path(sys.argv[1])
study = test_search._study(workdir, test_search._search(6))
local.run(workdir, [], 2, None, test_search.FAKE_WORKER, source=study)
"""


def test_a_launcher_killed_again_and_again_ends_with_every_trial_once(workdir: Path) -> None:
  workdir.mkdir()
  for seen in (1, 3, 5):
    process = subprocess.Popen([sys.executable, '-c', KILLED, workdir], stderr=subprocess.PIPE)
    until(lambda seen=seen: len(executions(workdir)) >= seen, 30)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  study = _study(workdir, _search(6))
  local.run(workdir, [], 2, Console(file=io.StringIO()), FAKE_WORKER, source=study)
  told = _told(workdir)['told']
  assert [(t['number'], t['state']) for t in told] == [(i, 'complete') for i in range(6)]
  assert len(list((workdir / 'cells').iterdir())) == 6


@pytest.mark.parametrize(
  ('space', 'said'),
  [
    ('', "names no setting; expected ranges, as in 'optim.learning_rate=log"),
    ('ffn.ratio=1,2', "'ffn.ratio=1,2' is no range; expected ranges"),
    ('ffn.ratio=normal(1,2)', "'ffn.ratio=normal(1,2)' is no range"),
    ('ffn.ratoi=int(1,2)', "no setting 'ffn.ratoi'; did you mean ffn.ratio?"),
    ('ffn.ratio=int(1,2.5)', 'ffn.ratio should have whole numbers at its ends'),
    ('ffn.ratio=log(0,2)', 'ffn.ratio is drawn by its logarithm, so its ends should be above 0'),
    ('ffn.ratio=uniform(2,1)', 'ffn.ratio should have two ends, the lower one first'),
    ('ffn.ratio=uniform(-1,1)', 'ffn.ratio: -1.0 is below the least allowed, 0.0'),
    ('model.d_model=uniform(1,2)', 'model.d_model is drawn by int, logint or choice, not by unif'),
    ('ffn.activation=choice(relu,relo)', "ffn.activation=relo: no variant 'relo'"),
    ('ffn.activation=choice(relu)', 'ffn.activation should have two choices or more, each once'),
    ('train.log_every=int(1,2)', "train.log_every changes no run's result"),
  ],
)
def test_what_is_no_range_is_told_in_a_line(space: str, said: str) -> None:
  with pytest.raises(UserError) as e:
    ranges.parse(space)
  assert str(e.value).startswith(f'--search={space}: {said}')


def test_pruning_needs_evaluations() -> None:
  asked = _search(prune='asha')
  search.needs_evaluations(asked, ASKED)
  with pytest.raises(UserError, match=r'set --train\.eval_every below --train\.steps=9, or'):
    search.needs_evaluations(asked, ASKED.replace(**{'train.eval_every': 9}))
