"""--train.init_from: what is taken over from another run, what is reset, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from launch.cells import Cell, stale, write_config
from tests.battery import flat
from tests.processes import TINY, cell, flags, read, rows, run
from transformer import provenance, runs, train
from transformer.checkpoint import load_params
from transformer.config import Config
from transformer.errors import UserError

OURS = {
  'train.steps': 20,
  'train.log_every': 5,
  'train.checkpoint_every': 10,
  'model.dropout': 0.1,
  'parallel.mesh': 'data:1',
}


def _cell(**changes: object) -> Cell:
  return cell('any', **OURS | changes)


@pytest.fixture(scope='module')
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A finished run with checkpoints of steps 10 and 20."""
  workdir = tmp_path_factory.mktemp('origin')
  c = _cell()
  write_config(c, workdir)
  train.run(c.config, c.folder(workdir))
  return workdir


def _run(c: Cell, workdir: Path) -> Path:
  workdir.mkdir(exist_ok=True)
  write_config(c, workdir)
  done = train.run(c.config, c.folder(workdir))
  (c.folder(workdir) / 'done.json').write_text(
    json.dumps({**done, 'code': provenance.code_digest(c.config)})
  )
  return c.folder(workdir)


def test_fine_tuning_takes_the_weights_alone(
  origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
  # A rate of almost 0 leaves the weights where they began.
  still = {'optim.learning_rate': 1e-30, 'optim.weight_decay': 0.0, 'train.steps': 3}
  c = _cell(**{'train.init_from': str(origin), 'seed': 5} | still)
  folder = _run(c, tmp_path / 'run')
  (whose,) = (origin / 'cells').iterdir()
  assert capsys.readouterr().out.splitlines()[0] == (
    f'--train.init=finetune: begins with the weights of {whose.name} at step 20; optimizer state, '
    'step, schedule and place in the data are reset'
  )
  step, weights = load_params(folder / 'checkpoints')
  assert step == 3
  theirs = flat(load_params(whose / 'checkpoints')[1])
  for path, leaf in flat(weights).items():
    np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
  fresh = _run(_cell(**{'seed': 5} | still), tmp_path / 'fresh')
  assert any(
    not np.array_equal(leaf, theirs[path])
    for path, leaf in flat(load_params(fresh / 'checkpoints')[1]).items()
  )  # so the comparison can fail
  record = runs.provenance(folder)['origin']
  assert record['folder'] == str(whose)
  assert (record['step'], record['init']) == (20, 'finetune')
  assert read(folder / 'done.json')['origin'] == record['identity']


def test_continuing_goes_on_to_the_bit(origin: Path, tmp_path: Path) -> None:
  c = _cell(**{'train.init_from': f'{origin}@10', 'train.init': 'continue'})
  assert c.folder_name != _cell().folder_name
  folder, (whole,) = _run(c, tmp_path / 'run'), (origin / 'cells').iterdir()
  assert rows(folder) == [row for row in rows(whole) if row['step'] > 10]
  theirs = flat(load_params(whole / 'checkpoints', 20)[1])
  for path, leaf in flat(load_params(folder / 'checkpoints')[1]).items():
    np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


@pytest.mark.exhaustive
def test_an_average_of_the_weights_is_what_is_fine_tuned(tmp_path: Path) -> None:
  averaged = _run(_cell(**{'optim.ema': 0.9}), tmp_path / 'averaged')
  still = {'optim.learning_rate': 1e-30, 'optim.weight_decay': 0.0, 'train.steps': 1}
  c = _cell(**{'train.init_from': str(averaged), 'optim.ema': 0.5} | still)
  begun = _run(c, tmp_path / 'run')
  theirs, mine = (rows(f)[-1]['eval/loss'] for f in (averaged, begun))
  assert mine == pytest.approx(theirs, abs=1e-6)  # e + .9 (p − e) may round where p = e
  assert 'its moving average' in runs.origin(c.config).describe(c.config)


def test_a_router_of_equal_shape_is_named_where_it_differs() -> None:
  def told(mine: str, theirs: str, **settings: object) -> str:
    own = {'moe.experts': 4, 'train.init_from': 'whole'} | settings
    config, other = (_cell(**own | {'moe.router': router}).config for router in (mine, theirs))
    return runs.Origin(Path('whole'), other, 20).describe(config)

  for init in ('finetune', 'continue'):
    same = told('topk', 'topk', **{'train.init': init})
    other = told('topk', 'topk(k=1, score=sigmoid, renormalise=False)', **{'train.init': init})
    assert other == (
      f'{same}; --moe.router=topk takes the place of topk(k=1, score=sigmoid, renormalise=False)'
    )
  assert '--moe.router' not in told('topk', 'switch', **{'moe.experts': 0}) + same


def test_a_run_that_has_begun_needs_its_origin_no_more(origin: Path, tmp_path: Path) -> None:
  class StopAt(train.Control):
    def beat(self, **progress: object) -> None:
      self.stop = progress['step'] >= 7

  link = tmp_path / 'elsewhere'
  link.symlink_to(origin)
  c = _cell(**{'train.init_from': str(link), 'seed': 2})
  write_config(c, tmp_path)
  with pytest.raises(train.Stopped):
    train.run(c.config, c.folder(tmp_path), StopAt())
  link.unlink()
  done = train.run(c.config, c.folder(tmp_path))
  assert done['origin'] == runs.provenance(c.folder(tmp_path))['origin']['identity']


def test_a_cell_is_stale_once_its_origin_is_another(origin: Path, tmp_path: Path) -> None:
  (whose,) = (origin / 'cells').iterdir()
  c = _cell(**{'train.init_from': str(origin), 'train.steps': 1})
  folder = _run(c, tmp_path)
  data = read(folder / 'done.json')['data']
  assert stale([c], tmp_path, data) == []
  path = whose / 'provenance.json'
  kept = path.read_text()
  path.write_text(json.dumps(json.loads(kept) | {'code': 'other'}))
  assert stale([c], tmp_path, data) == [c]
  path.write_text(kept)


@pytest.mark.exhaustive
def test_the_terminal_is_told_what_is_reset(origin: Path, tmp_path: Path) -> None:
  settings = flags(TINY | OURS | {'train.steps': 1, 'train.init_from': origin})
  ran = run('experiments.train', f'--workdir={tmp_path / "run"}', *settings)
  assert ran.returncode == 0, ran.stderr
  assert ran.stderr.splitlines()[0].startswith('--train.init=finetune: begins with the weights of ')
  again = run('experiments.train', f'--workdir={tmp_path / "run"}', *settings)
  assert '--train.init' not in again.stderr  # it is done
  wide = run('experiments.train', f'--workdir={tmp_path / "wide"}', *settings, '--ffn.d_ff=24')
  assert wide.returncode == 2
  assert wide.stderr.startswith(f'error: --train.init_from={origin}: its tensor layers/ffn/up is ')
  assert not (tmp_path / 'wide').exists()


def _refused(config: Config, tmp_path: Path) -> str:
  with pytest.raises(UserError) as e:
    train.run(config, tmp_path)
  assert '\n' not in str(e.value)
  return str(e.value)


def test_what_does_not_fit_is_refused_in_one_line(origin: Path, tmp_path: Path) -> None:
  (whose,) = (origin / 'cells').iterdir()

  def refused(asked: object = origin, **changes: object) -> str:
    return _refused(_cell(**{'train.init_from': str(asked)} | changes).config, tmp_path)

  flag = f'--train.init_from={origin}'
  given = f'give the shape of that run, which is in {whose / "config.json"}'
  wide = {'ffn.d_ff': 24}
  assert refused(**wide) == (
    f'{flag}: its tensor layers/ffn/up is (1, 16, 64), here (1, 16, 24); {given}'
  )
  gated = {'ffn.activation': 'swiglu', 'ffn.d_ff': 64}
  assert refused(**gated) == (
    f'{flag}: its tensor layers/ffn/gate is absent, here (1, 16, 64); {given}'
  )
  assert (
    refused(f'{origin}@7') == f'{flag}@7: no checkpoint of step 7 in it; there are those of 10, 20'
  )
  assert refused(tmp_path / 'no') == (
    f'--train.init_from={tmp_path / "no"}: no config.json in it; give the folder of a run'
  )
  on = {'train.init': 'continue'}
  assert refused(**on) == (
    f'--train.steps=20: {origin} stands at step 20 already; ask for more, or --train.init=finetune'
  )
  assert refused(**on, **{'train.steps': 30, 'optim.name': 'lion'}) == (
    f'--optim.name=lion: cannot continue from the state of adamw in {origin}; '
    'choose --optim.name=adamw or --train.init=finetune'
  )
  told = refused(**on, **{'train.steps': 30, 'optim.ema': 0.9})
  assert told.startswith(f'--train.init=continue: the state of {origin} does not fit (')
  with pytest.raises(UserError) as e:
    _cell(**on)
  assert str(e.value) == '--train.init=continue: of which run? Name it by --train.init_from'


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
  def text(name: str, words: str) -> dict:
    for k in range(4):
      (tmp_path / f'{name}{k}.txt').write_text(f'{words} {k} ' * 200)
    return {
      'data.source': f'text:{tmp_path}/{name}*.txt',
      'data.tokenizer': 'bpe(vocab_size=260)',
      'model.vocab_size': 0,
      'train.steps': 1,
    }

  one, other = text('a', 'the cat sat'), text('b', 'on the mat')
  folder = _run(_cell(**one), tmp_path / 'one')
  assert (folder / 'tokenizer.json').exists()
  same = _run(_cell(**one, **{'train.init_from': str(folder)}), tmp_path / 'same')
  assert runs.provenance(same)['origin']['step'] == 1
  told = _refused(_cell(**other, **{'train.init_from': str(folder)}).config, tmp_path)
  tokenizer = f'json:{folder / "tokenizer.json"}'
  assert told == (
    f'--train.init_from={folder}: its tokenizer is not the one of this data, so its embedding '
    f'means other tokens; choose --data.tokenizer={tokenizer}'
  )
  advised = {'data.tokenizer': tokenizer, 'train.init_from': str(folder)}
  assert runs.provenance(_run(_cell(**other | advised), tmp_path / 'other'))['origin']
  none = {'model.vocab_size': 260, 'train.init_from': str(folder)}
  told = _refused(_cell(**none).config, tmp_path)
  assert told.endswith('was trained on text, and here is none; choose its --data.source')
