"""Turns a checkpoint of Hugging Face's transformers into a run, and a run into such a checkpoint.

With --upcycle, either of the two into a run whose FFNs are experts.

  python -m experiments.convert --source=gpt2 --out=runs/gpt2
  python -m experiments.generate --checkpoint=runs/gpt2 --prompt='The meaning of life'
  python -m experiments.train --train.init_from=runs/gpt2 ...
  python -m experiments.convert --source=runs/x --out=x-for-transformers --step=best
  python -m experiments.convert --source=runs/x --out=runs/moe --upcycle='experts=8, k=2'
  python -m experiments.train --train.init_from=runs/moe --moe.experts=8 ...

A folder of transformers has config.json and model.safetensors, of GPT-2, Llama, Mistral, Mixtral,
BERT or Marian, and is read and written without torch. In a run token 0 ends a document, so rows of
the vocabulary are exchanged on the way in and back on the way out; a round trip changes no bit of
them. What no family of transformers is cannot be written. A run with these flags is a GPT-2:

  --model.embedding_scale=one --model.positions=learned --model.norm='layernorm(epsilon=1e-05)'
  --model.bias --ffn.bias --ffn.activation=gelu_tanh

--upcycle (Komatsuzaki et al. 2023) copies the FFN of each layer into all experts of the layer, and
draws the routers by the seed of the source. The weights of the k experts of a token, 2 if not said,
add up to 1, so that the run at first computes what the dense model did. Also 'layers=every(2)', or
other layers as --moe.layers has them: 'experts=8; layers=3,5'.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformer import flags
from transformer.errors import UserError

if TYPE_CHECKING:
  from transformer.config import Config

SOURCE = flags.script_flag('str', 'source', '', "folder of a run, or of transformers' checkpoint")
OUT = flags.script_flag('str', 'out', '', 'folder to write; the other of the two')
UPCYCLE = flags.script_flag(
  'str', 'upcycle', '', "write a run whose FFNs are experts: 'experts=8, k=2, layers=every(2)'"
)
STEP = flags.script_flag('str', 'step', 'newest', "a run's checkpoint: newest, best or a step")


def main() -> int:
  for flag in (SOURCE, OUT):
    if not flag.value:
      raise UserError(f'--{flag.name}: is empty; name a folder')
  source, out = Path(SOURCE.value), Path(OUT.value)
  if not _is_run(source):
    _import(source, out)
  elif UPCYCLE.value:
    _upcycle(source, out)
  else:
    _export(source, out)
  return 0


def _is_run(source: Path) -> bool:
  """Whether a folder is a run's or an experiment's: their config.json has sections."""
  from transformer.interop import shards

  if (source / 'cells').is_dir():
    return True
  if not (source / 'config.json').exists():
    raise UserError(f'--source={source}: no config.json in it; name a run or a checkpoint')
  return isinstance(shards.read_json(source / 'config.json').get('model'), dict)


def _export(source: Path, out: Path) -> None:
  from transformer import decode, runs
  from transformer.config import routing
  from transformer.interop import hf, vocabulary

  folder = runs.cell_folder(source, 'source')
  config, params, step = decode.open_cell(folder, STEP.value)
  end = vocabulary.end_of(config, folder)
  hf.save(out, *vocabulary.out_of_run(config, params, end), companions=folder)
  if config.moe.experts and routing.dispatch(config).drops:
    print(f'--moe.dispatch={config.moe.dispatch}: experts drop tokens in the run, and there none')
  print(f'{out}: step {step} of {folder}, for transformers')


def _upcycle(source: Path, out: Path) -> None:
  from transformer import decode, files, runs
  from transformer.interop import hf

  files.refuse_existing(out, 'out')
  folder = runs.cell_folder(source, 'source')
  config, params, step = decode.open_cell(folder, STEP.value)
  with files.appearing(out, 'out') as new:
    hf.copy_companions(folder, new)
    config = _write_run(new, config, params, f'{folder.absolute()}@{step}')
  print(
    f'{out}: a run at step 0, {config.moe.experts} copies of each FFN of {folder} at step {step}'
  )


def _import(source: Path, out: Path) -> None:
  from launch.files import write_json
  from transformer import files
  from transformer.config import resolve
  from transformer.data import tokenizers
  from transformer.interop import hf, vocabulary

  if STEP.present:
    raise UserError(f"--step={STEP.value}: is of a run; {source} is a checkpoint of transformers'")
  files.refuse_existing(out, 'out')
  config, params = hf.load(source)
  end = vocabulary.end_of(config, source)
  config, params = vocabulary.into_run(config, params, end)
  text = None
  if (source / hf.TOKENIZER).exists():
    text = tokenizers.load(source / hf.TOKENIZER).to_json()
    own = {'data.source': 'stdlib', 'data.tokenizer': f'json:{source / hf.TOKENIZER}'}
    config = resolve(config.replace(**own))
    config = config.replace(**{'data.tokenizer': f'json:{out.absolute() / hf.TOKENIZER}'})
  special = hf.special_ids(source)
  with files.appearing(out, 'out') as folder:
    if special:  # which config.json may tell alone; its own file takes this one's place
      write_json(folder / hf.GENERATION, special)
    hf.copy_companions(source, folder)
    if text:
      (folder / hf.TOKENIZER).write_text(text, encoding='utf-8')
    config = _write_run(folder, config, params, str(source.absolute()))
  copies = f'{config.moe.experts} copies of each FFN, ' if UPCYCLE.value else ''
  print(f'{out}: a run at step 0, {copies}{_vocabulary(config, end)}')
  begin = 'decoder_start_token_id' if config.data.source_len else 'bos_token_id'
  theirs = special.get(begin)
  if isinstance(theirs, int) and theirs != end and theirs < config.model.vocab_size:
    print(f'note: the original begins with id {theirs} ({begin}), a run with 0, its end')


def _write_run(folder: Path, config: Config, params: dict, source: str) -> Config:
  """What training leaves behind, as if it had been trained elsewhere, of the config returned.

  source: for the provenance.
  """
  import contextlib
  import hashlib

  import jax
  import numpy as np

  from launch.files import write_json
  from transformer import provenance
  from transformer.checkpoint import Checkpoints
  from transformer.state import TrainState
  from transformer.upcycle import upcycle

  config = config.replace(**{'train.init_from': '', 'train.init': 'finetune'})
  if UPCYCLE.value:
    config, params = upcycle(config, params, UPCYCLE.value)
  write_json(folder / 'config.json', config.to_json())
  zero, digest = np.zeros((), np.int32), hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(leaf.tobytes())
  state = TrainState(
    **dict(step=zero, params=params, opt_state={}, model_state={}, ema={}, hyper={}),
    **dict(key=np.zeros(2, np.uint32), bad_steps=zero, skipped=zero),
  )
  with contextlib.closing(Checkpoints(folder / 'checkpoints')) as checkpoints:
    checkpoints.save(state, {}, None)
  fingerprint = digest.hexdigest()[:16]
  made = {'converted_from': source} | ({'upcycle': UPCYCLE.value} if UPCYCLE.value else {})
  provenance.write(folder, config, fingerprint, made)
  return config


def _vocabulary(config: Config, end: int | None) -> str:
  if end is None:
    return f'ids moved up by one: no end token, vocabulary {config.model.vocab_size}'
  return f'ids 0 and {end} exchanged' if end else 'ids as they were'


if __name__ == '__main__':
  flags.run(main)
