"""experiments.convert: a checkpoint of transformers as a run, and a run as such a checkpoint."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests import processes
from tests.battery import flat, jiggle, same_bits, stir, tiny, weights
from tests.interop import goldens
from transformer import count, decode
from transformer.config import Config, tokenizer_file
from transformer.errors import UserError
from transformer.interop import configs, hf, vocabulary

END = '<|endoftext|>'


def convert(source: Path, out: Path, *args: str) -> str:
  ran = processes.run('experiments.convert', f'--source={source}', f'--out={out}', *args)
  assert ran.returncode == 0, ran.stderr
  return ran.stdout


def refused(source: Path, out: Path, *args: str) -> str:
  ran = processes.run('experiments.convert', f'--source={source}', f'--out={out}', *args)
  assert (ran.returncode, ran.stdout) == (2, '')
  return ran.stderr


def words(folder: Path, vocab: int, end: str = END) -> None:
  """A tokenizer of whole words; the last id is the end token, or without one a word, too."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  entries = {f'w{i}': i for i in range(vocab - bool(end))} | ({end: vocab - 1} if end else {})
  made = Tokenizer(models.WordLevel(entries, unk_token='w0'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  if end:
    made.add_special_tokens([end])
  made.enable_truncation(8)  # which a run does without
  made.save(str(folder / 'tokenizer.json'))


def texts(folder: Path) -> None:
  """Twenty documents, of those words."""
  for k in range(20):
    (folder / f'{k}.txt').write_text(' '.join(f'w{(k + i) % 60}' for i in range(200)))


@pytest.fixture(scope='module')
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A GPT-2 whose end token is its last, with what lies beside a checkpoint."""
  folder = goldens.copy('gpt2', tmp_path_factory.mktemp('hf') / 'gpt2')
  words(folder, 61)
  special = {'bos_token_id': 60, 'eos_token_id': 60}
  goldens.edit(folder, **special)
  (folder / 'generation_config.json').write_text(json.dumps(special | {'max_length': 9}))
  (folder / 'merges.txt').write_text('#version: 0.2\n')
  return folder


@pytest.fixture(scope='module')
def run(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  out = tmp_path_factory.mktemp('runs') / 'gpt2'
  assert convert(original, out) == f'{out}: a run at step 0, ids 0 and 60 exchanged\n'
  return out


def test_logits_agree_up_to_the_exchange(original: Path, run: Path) -> None:
  config, params, step = decode.open_cell(run)
  assert (step, config.data.tokenizer) == (0, f'json:{run}/tokenizer.json')
  theirs, weights_of_theirs = hf.load(original)
  ids = np.array([[60, 3, 0, 59, 60, 7]], np.int32)
  ours = np.array([[0, 3, 60, 59, 0, 7]], np.int32)
  order = np.array(tokenizer_file.rearranged(61, 60))
  wanted = np.asarray(goldens.logits(theirs, weights_of_theirs, ids))
  found = np.asarray(goldens.logits(config, params, ours))
  np.testing.assert_allclose(found[..., order], wanted, atol=1e-6)
  assert np.abs(found - wanted).max() > 0.1


@pytest.mark.parametrize('page', ['experiments/convert.py', 'README.md'])
def test_flags_that_make_a_gpt2(page: str) -> None:
  told = (processes.ROOT / page).read_text()
  line = re.search(r'--model\.embedding_scale=one[^`]*?--ffn\.activation=gelu_tanh', told)[0]
  pairs = (flag.removeprefix('--').partition('=') for flag in shlex.split(line))
  settings = {name: value if eq else True for name, eq, value in pairs}
  assert configs.write_config(tiny(**settings))[0].model_type == 'gpt2'
  for name in ('model.embedding_scale', 'model.positions', 'model.norm'):
    with pytest.raises(UserError, match='no family of transformers is such a model'):
      configs.write_config(tiny(**{k: v for k, v in settings.items() if k != name}))


def test_there_and_back_is_exact(original: Path, run: Path, tmp_path: Path) -> None:
  out = tmp_path / 'back'
  assert convert(run, out) == f'{out}: step 0 of {run}, for transformers\n'
  assert len({path.stat().st_mode for path in out.iterdir()}) == 1
  assert same_bits(goldens.tensors(out), goldens.tensors(original))
  tree, was = (json.loads((f / 'config.json').read_text()) for f in (out, original))
  assert {key: was[key] for key in tree} == tree
  for name in ('generation_config.json', 'merges.txt'):
    assert (out / name).read_bytes() == (original / name).read_bytes()
  vocab = [
    json.loads((f / 'tokenizer.json').read_text())['model']['vocab'] for f in (out, original)
  ]
  assert vocab[0] == vocab[1]
  assert (tree['bos_token_id'], tree['eos_token_id']) == (60, 60)


def test_a_run_that_was_converted_is_used_as_any(run: Path, tmp_path: Path) -> None:
  most = decode.open_cell(run)[0].data.seq_len
  for beams in ([], ['--beams=2']):
    prompt = f'--prompt={"w3 " * (most - 4)}'
    ran = processes.run('experiments.generate', f'--checkpoint={run}', prompt, *beams)
    assert (ran.returncode, ran.stderr.splitlines()) == (
      *(0,),
      [f'[{run}, step 0]', f'the context of {most} tokens is full'],
    )
    assert 'w3 w3 w' in ran.stdout
  text = tmp_path / 'text.txt'
  text.write_text(' '.join(f'w{i % 60}' for i in range(4000)))
  ran = processes.run(
    *('experiments.evaluate', f'--checkpoint={run}', f'--data.source=text:{text}', '--json')
  )
  assert ran.returncode == 0, ran.stderr
  assert json.loads(ran.stdout)['nats_per_token'] > 1


def begin_from(run: Path, config: Config, params: dict, folder: Path) -> None:
  """Trains from a run for a step that is too small to change a weight."""
  texts(folder)
  shape = {
    name: config.get(name)
    for name in (
      *('model.d_model', 'model.num_layers', 'model.num_heads', 'model.positions', 'model.norm'),
      *('model.bias', 'model.embedding_scale', 'ffn.d_ff', 'ffn.bias', 'ffn.activation'),
      *('moe.experts', 'moe.layers', 'data.seq_len', 'data.tokenizer'),
    )
  }
  more = {'train.steps': 1, 'data.batch_size': 4, 'data.source': f'text:{folder}/*.txt'}
  settings = shape | more | {'train.init_from': run, 'optim.learning_rate': 1e-30}
  workdir = folder / 'tuned'
  ran = processes.run('experiments.train', *processes.flags(settings), f'--workdir={workdir}')
  assert ran.returncode == 0, ran.stderr + ran.stdout
  _, tuned, _ = decode.open_cell(workdir)
  was = flat(params)
  for path, x in flat(tuned).items():
    np.testing.assert_allclose(x, was[path], atol=1e-6)


@pytest.mark.exhaustive
def test_a_run_goes_on_with_experts(run: Path, tmp_path: Path) -> None:
  out, text = tmp_path / 'moe', 'experts=3, layers=last(1)'
  said = convert(run, out, f'--upcycle={text}')
  assert said == f'{out}: a run at step 0, 3 copies of each FFN of {run} at step 0\n'
  (config, dense, _), (wide, params, _) = decode.open_cell(run), decode.open_cell(out)
  assert (wide.moe.experts, wide.moe.router, wide.moe.layers) == (3, 'topk', 'last(1)')
  ids = np.array([[0, 3, 60, 59, 0, 7]], np.int32)
  wanted = np.asarray(goldens.logits(config, dense, ids))
  np.testing.assert_allclose(goldens.logits(wide, params, ids), wanted, atol=1e-5)
  moved = stir(params, 'layers_1/ffn/experts/up')
  assert np.abs(goldens.logits(wide, moved, ids) - wanted).max() > 1e-2
  for name in ('tokenizer.json', 'generation_config.json', 'merges.txt'):
    assert (out / name).read_bytes() == (run / name).read_bytes()
  data = processes.read(out / 'provenance.json')['data']
  assert (data['converted_from'], data['upcycle']) == (f'{run}@0', text)
  ran = processes.run(
    'experiments.generate', f'--checkpoint={out}', '--prompt=w3 w5', '--max_new_tokens=4'
  )
  assert ran.returncode == 0, ran.stderr
  assert ran.stdout.startswith('w3 w5 w')
  begin_from(out, wide, params, tmp_path)


def test_a_checkpoint_becomes_experts_and_a_mixtral(tmp_path: Path) -> None:
  source = goldens.FOLDER / 'mistral'
  said = convert(source, tmp_path / 'run', '--upcycle=experts=4').splitlines()
  assert said[0].endswith(': a run at step 0, 4 copies of each FFN, ids 0 and 2 exchanged')
  config, params, _ = decode.open_cell(tmp_path / 'run')
  hf.save(tmp_path / 'out', *vocabulary.out_of_run(config, params, end=2))
  theirs, ours = goldens.tensors(source), goldens.tensors(tmp_path / 'out')
  assert same_bits(ours['lm_head.weight'], theirs['lm_head.weight'])
  for n in range(4):
    up = ours[f'model.layers.1.block_sparse_moe.experts.{n}.w3.weight']
    assert same_bits(up, theirs['model.layers.1.mlp.up_proj.weight'])


@pytest.mark.parametrize('name', ['bert', 'gpt2_untied', 'marian_apart'])
@pytest.mark.parametrize('end', [None, 7])
def test_rows_go_in_and_out(name: str, end: int | None) -> None:
  config, params = hf.load(goldens.FOLDER / name)
  theirs, ours = vocabulary.into_run(config, params, end)
  assert theirs.model.vocab_size == config.model.vocab_size + (end is None)
  again, back = vocabulary.out_of_run(theirs, ours, end)
  assert again == config
  assert same_bits(params, back)
  order = np.array(tokenizer_file.rearranged(config.model.vocab_size, end))
  there = goldens.real(goldens.arrays(name))  # at padding there are logits, of nothing
  given = goldens.padded(goldens.arrays(name))
  ids = [x if x is None else np.where(x < 0, -1, order[x]) for x in given[:2]] + list(given[2:])
  wanted = np.asarray(goldens.logits(config, params, *given))[there]
  found = np.asarray(goldens.logits(theirs, ours, *ids))[there]
  np.testing.assert_allclose(found[..., order], wanted, atol=1e-5)
  if end is None and not config.model.logits_bias:
    np.testing.assert_allclose(found[..., 0], wanted.mean(-1), atol=1e-5)


@pytest.mark.exhaustive
def test_without_an_end_token_ids_go_up(tmp_path: Path) -> None:
  source = goldens.copy('llama', tmp_path / 'llama')
  words(source, 53, end='')
  said = convert(source, tmp_path / 'run')
  assert said.splitlines()[0].endswith('ids moved up by one: no end token, vocabulary 54')
  config, params, _ = decode.open_cell(tmp_path / 'run')
  assert decode.open_tokenizer(tmp_path / 'run').encode(['w0 w52'])[0].tolist() == [1, 53]
  assert count.shapes(config)['embed/table'] == params['embed']['table'].shape == (54, 12)
  convert(tmp_path / 'run', tmp_path / 'out')
  assert same_bits(goldens.tensors(tmp_path / 'out'), goldens.tensors(source))


@pytest.mark.exhaustive
@pytest.mark.parametrize('name', ['bert', 'marian', 'mistral'])
def test_without_a_tokenizer(name: str, tmp_path: Path) -> None:
  """Ids are then those that its config.json tells of, as data.source=tokens reads them."""
  source = goldens.copy(name, tmp_path / name)
  (source / 'source.spm').write_bytes(b'of a tokenizer that is only carried along')
  said = convert(source, tmp_path / 'run').splitlines()
  exchanged = {
    'bert': 'ids moved up by one: no end token, vocabulary 72',
    'marian': 'ids as they were',
    'mistral': 'ids 0 and 2 exchanged',
  }
  assert said[0].endswith(exchanged[name])
  notes = {
    'marian': 'the original begins with id 58 (decoder_start_token_id), a run with 0, its end',
    'mistral': 'the original begins with id 1 (bos_token_id), a run with 0, its end',
  }
  assert said[1:] == ([f'note: {notes[name]}'] if name in notes else [])
  convert(tmp_path / 'run', tmp_path / 'out')
  assert same_bits(goldens.tensors(tmp_path / 'out'), goldens.tensors(source))
  assert (tmp_path / 'out' / 'source.spm').exists()
  was, tree = (json.loads((f / 'config.json').read_text()) for f in (source, tmp_path / 'out'))
  for key in ('pad_token_id', 'decoder_start_token_id'):
    assert tree.get(key) == was.get(key)


@pytest.mark.exhaustive
def test_a_trained_run_becomes_a_llama(tmp_path: Path) -> None:
  texts(tmp_path)
  settings = processes.TINY | {
    'data.source': f'text:{tmp_path}/*.txt',
    'data.tokenizer': 'bpe(vocab_size=300)',
    'model.vocab_size': 0,
    'model.embedding_scale': 'one',
    'ffn.activation': 'swiglu',
    'train.steps': 2,
  }
  ran = processes.run('experiments.train', *processes.flags(settings), f'--workdir={tmp_path}/run')
  assert ran.returncode == 0, ran.stderr
  convert(tmp_path / 'run', tmp_path / 'out')
  config, params, _ = decode.open_cell(tmp_path / 'run')
  theirs, back = hf.load(tmp_path / 'out')
  assert same_bits(params, back)
  assert theirs.model == config.replace(**{'model.unroll': False}).model
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['eos_token_id'] == 0
  convert(tmp_path / 'out', tmp_path / 'again')
  again = decode.open_cell(tmp_path / 'again')[1]
  assert same_bits(params, again)
  [cell] = (tmp_path / 'run' / 'cells').iterdir()
  tokenizers = [f / 'tokenizer.json' for f in (cell, tmp_path / 'again')]
  assert tokenizers[0].read_text() == tokenizers[1].read_text()


def test_files_of_ids_keep_their_end(tmp_path: Path) -> None:
  """A run on ids whose end was exchanged with 0 gives them back on the way out."""
  config = tiny(**{'data.source': "tokens('x.bin', eos=9)"})
  params = jiggle(weights(config))
  end = vocabulary.end_of(config, tmp_path)
  assert end == 9
  _, out = vocabulary.out_of_run(config, params, end)
  table, theirs = params['embed']['table'], out['embed']['table']
  assert (theirs[9] == table[0]).all() and (theirs[0] == table[9]).all()
  assert vocabulary.end_of(tiny(), tmp_path) == 0


def test_mistakes_take_one_line(original: Path, run: Path, tmp_path: Path) -> None:
  out = tmp_path / 'out'
  assert refused(original, run) == (
    f'error: --out={run}: is there already; name a folder that is not, or is empty\n'
  )
  assert refused(tmp_path / 'none', out) == (
    f'error: --source={tmp_path}/none: no config.json in it; name a run or a checkpoint\n'
  )
  ran = processes.run('experiments.convert', f'--source={run}')
  assert (ran.returncode, ran.stderr) == (2, 'error: --out: is empty; name a folder\n')
  assert refused(run, out, '--step=3') == (
    f'error: {run}/checkpoints: no checkpoint of step 3 in it; there are those of 0\n'
  )
  assert refused(original, out, '--step=nonsense') == (
    f"error: --step=nonsense: is of a run; {original} is a checkpoint of transformers'\n"
  )
  broken = goldens.copy('gpt2', tmp_path / 'broken')
  whole = (broken / 'model.safetensors').read_bytes()
  (broken / 'model.safetensors').write_bytes(whole[:-10])
  assert refused(broken, out).startswith(f'error: {broken}/model.safetensors: is no whole')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['broken']
