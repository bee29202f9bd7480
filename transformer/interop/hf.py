"""Checkpoints of Hugging Face's transformers: folders of config.json and safetensors.

GPT-2, Llama, Mistral, Mixtral, BERT (BertForMaskedLM) and Marian. families.py says what each is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformer import spec
from transformer.config import Config, resolve, tokenizer_file
from transformer.data import tokenizers
from transformer.errors import UserError
from transformer.files import appearing
from transformer.interop import configs, shards, tensors, vocabulary

TOKENIZER, CONFIG, GENERATION = 'tokenizer.json', 'config.json', 'generation_config.json'
COMPANIONS = (  # of a checkpoint, that this library keeps and does not read
  *('tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json'),
  *('merges.txt', 'vocab.txt', 'source.spm', 'target.spm', 'target_vocab.json', GENERATION),
)
_SPECIAL = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'decoder_start_token_id')


def load(directory: str | Path) -> tuple[Config, dict]:
  """The resolved config and the parameters, float32, of a folder that save_pretrained wrote.

  Weights in bfloat16 or float16 become float32; shards are joined. Logits are the original's in
  float32, under these conventions:
    ids are the original's, in its order, in every table (experiments.convert rearranges them);
    −1 is padding, where the original has 0 in attention_mask; positions count from the first token
    that is not padding, as the original's do if given such position_ids;
    of BERT, pooler and next-sentence head are left out; no type is given: all are 0;
    dropout is kept, but that of attention weights, which does not exist here;
    of Mixtral, experts are read one a tensor, as published files and save_pretrained have them;
    its jitter here is of what the router reads, there also of what the experts do, in training;
    router_aux_loss_coef is neither read nor written: its loss is k times moe.balance_loss's where
    there is one layer and one row, but pools loads of layers and rows before the product, where
    ours adds up layers. moe.balance_loss is router_aux_loss_coef · k / layers where loads agree.
  data.seq_len is the context the original was made for; data.tokenizer is the folder's
  tokenizer.json. Where there is none, data.source is of ids, with the original's end token.

  Raises UserError, one line that names the file and the key or tensor, for what is missing, cut
  short, of another shape, or a feature that is not known: nothing is ignored that could matter.
  """
  folder = Path(directory)
  if not folder.is_dir():
    raise UserError(f'{folder}: is no folder; name one with config.json and model.safetensors')
  family, config = configs.read_config(folder / CONFIG)
  config = resolve(config.replace(**_data(folder, config)))
  return config, tensors.read_params(folder, family, config)


def save(
  directory: str | Path, config: Config, params: dict, companions: str | Path | None = None
) -> None:
  """Writes a resolved config and its parameters as a folder for transformers' from_pretrained.

  Tensors are float32. Inverse of `load` to the bit. The family is the first that has the config:
  a Mistral without a window is written as the Llama it then is, and biases that the family has and
  the model lacks are written as zeros. Tokenizer files, generation_config.json and special ids are
  those of the folder `companions`; None: of where data.tokenizer lies. Of a Marian that has no
  tokenizer.json name the folder it was loaded from.
  directory: appears whole or not at all. Raises UserError if it is not empty, or naming the setting
  that no family has.
  """
  family, tree, wider = configs.write_config(config)
  found = tensors.write_params(family, config, params, wider)
  home = Path(companions) if companions else _home(config)
  tree |= _special(config, home)
  with appearing(Path(directory)) as folder:
    (folder / CONFIG).write_text(json.dumps(tree, indent=2, sort_keys=True) + '\n')
    shards.write(folder / shards.FILE, found)
    shutil.copymode(folder / CONFIG, folder / shards.FILE)  # else its owner's alone
    if home:
      copy_companions(home, folder)
      _introduce(folder / TOKENIZER)


def copy_companions(home: Path, folder: Path) -> None:
  """Copies what lies beside a checkpoint's weights: its tokenizer and how it generates."""
  for name in (TOKENIZER, *COMPANIONS):
    if (home / name).is_file():
      shutil.copyfile(home / name, folder / name)


def _introduce(path: Path) -> None:
  """Makes a tokenizer.json one that transformers opens, and tells it by which class."""
  if not path.exists():
    return
  made = tokenizers.load(path)
  if isinstance(made, tokenizers.Byte):
    path.write_text(made.to_library(), encoding='utf-8')
  beside = path.with_name('tokenizer_config.json')
  if not beside.exists():
    end = tokenizer_file.read(path, str(path)).end_name
    names = {'bos_token': end, 'eos_token': end} if end else {}
    tree = {'tokenizer_class': 'PreTrainedTokenizerFast', **names}
    beside.write_text(json.dumps(tree, indent=2) + '\n')


def _data(folder: Path, config: Config) -> dict[str, Any]:
  """What the settings of data are: the text that a tokenizer reads, or ids."""
  path, vocab = folder / TOKENIZER, config.model.vocab_size
  if path.exists():
    facts = tokenizer_file.read(path, str(path))
    if facts.entries > vocab:
      raise UserError(
        f'{path}: has ids up to {facts.entries - 1}, the model a vocabulary of {vocab}; give the '
        'tokenizer that belongs to it'
      )
    if facts.vocab_size <= vocab:
      found = {'data.source': 'stdlib', 'data.tokenizer': f'json:{path}'}
      if config.model.architecture == 'encoder':
        found['data.mask_token'] = vocab - 1 if facts.mask is None else facts.mask
      return found
  if config.model.architecture == 'encoder_decoder':
    return {'data.source': 'synthetic'}
  end = special_ids(folder).get('eos_token_id')
  end = end[0] if isinstance(end, list) and end else end
  tokens = spec.variants('data.source')['tokens']
  source = tokens('*.bin', eos=end if isinstance(end, int) and 0 <= end < vocab else -1)
  return {'data.source': spec.canonical(source)}


def _home(config: Config) -> Path | None:
  """The folder that a config's tokenizer lies in."""
  tokenizer = spec.parse('data.tokenizer', config.data.tokenizer)
  return Path(tokenizer.path).expanduser().parent if tokenizer.variant == 'json' else None


def _special(config: Config, home: Path | None) -> dict[str, int | list[int] | None]:
  """Ids that generation begins and ends with: as the original has them, or else as a run does."""
  end = vocabulary.end_of(config, home)
  found = {'bos_token_id': end, 'eos_token_id': end, 'pad_token_id': None}
  if config.model.architecture == 'encoder_decoder':
    found |= dict.fromkeys(('pad_token_id', 'decoder_start_token_id'), end or 0)
  return found | (special_ids(home) if home else {})


def special_ids(folder: Path) -> dict[str, int | list[int]]:
  """The special ids that a folder's own files tell of."""
  found = {}
  for name in (CONFIG, GENERATION):
    if (folder / name).exists():
      tree = shards.read_json(folder / name)
      found |= {key: tree[key] for key in _SPECIAL if tree.get(key) is not None}
  return found
