"""config.json to settings and back, by the table of a family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformer import count, spec
from transformer.config import SETTINGS, Config, resolve
from transformer.errors import UserError
from transformer.interop import shards
from transformer.interop.families import FAMILIES, Family
from transformer.interop.keys import shown

# Keys of any family that change no logits: of training, generation and what saved it.
_HARMLESS = frozenset(
  """_attn_implementation _attn_implementation_autoset _name_or_path _num_labels architectures
  bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cls_token_id
  decoder_start_token_id diversity_penalty do_sample dtype early_stopping
  encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
  forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range
  label2id length_penalty mask_token_id max_length min_length model_type
  no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
  output_hidden_states output_past output_scores pad_token_id prefix problem_type
  remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
  suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
  torch_dtype torchscript transformers_version typical_p unk_token_id use_bfloat16 use_cache
  """.split()
)
_MUST = {  # of any family, at these values; a table's own come before
  **{'pruned_heads': {}, 'quantization_config': None, 'tie_encoder_decoder': False},
  **{'rope_parameters.rope_type': 'default', 'rope_scaling.rope_type': 'default'},
  **{'rope_scaling.type': 'default', 'is_decoder': False, 'is_encoder_decoder': False},
  'add_cross_attention': False,
  'cross_attention_hidden_size': None,
}
# Settings that decide what a model computes are all of a model's but these, and those of its FFN but
# widths, which the shapes tell.
_OF_TRAINING = ('model.dropout', 'model.stochastic_depth', 'model.out_init', 'model.dtype')
_OF_FFN = ('activation', 'encoder_activation', 'hidden_layers', 'shared', 'bias')
_DECISIVE = [
  *(n for n in SETTINGS if n.startswith('model.') and n not in (*_OF_TRAINING, 'model.unroll')),
  *(f'ffn.{name}' for name in _OF_FFN),
  'optim.parametrization',
]


def read_config(path: Path) -> tuple[Family, Config]:
  """The family and the resolved config of a config.json, its data aside.

  Raises UserError naming file and key for what the tables do not know.
  """
  tree = _spelt(shards.read_json(path))
  kind = tree.get('model_type')
  family = FAMILIES.get(kind) if isinstance(kind, str) else None
  if family is None:
    known = ', '.join(FAMILIES)
    raise UserError(f'{path}: model_type={shown(kind)} is not known; there are {known}')
  must = _MUST | family.must
  names = {key.name for key in family.keys}
  for name, value in tree.items():
    if name in must:
      if value != must[name] or isinstance(value, bool) != isinstance(must[name], bool):
        raise UserError(
          f'{path}: {name}={shown(value)} is not supported; {kind} is known with '
          f'{shown(must[name])} alone'
        )
    elif name not in names and name not in family.harmless and name not in _HARMLESS:
      raise UserError(f'{path}: {name}={shown(value)} is a feature of {kind} that is not known')
  return family, _settings(path, family, tree)


def _spelt(tree: dict) -> dict:
  """A config.json with what it nests about rotary positions beside the rest."""
  nested = ('rope_parameters', 'rope_scaling')  # of the two the last is what transformers takes
  flat = {name: value for name, value in tree.items() if name not in nested}
  for group in nested:
    values = tree.get(group)
    if isinstance(values, dict):
      flat |= {(n if n == 'rope_theta' else f'{group}.{n}'): v for n, v in values.items()}
    elif values is not None:
      flat[group] = values
  return flat


def _settings(path: Path, family: Family, tree: dict) -> Config:
  tree = {key.name: key.default for key in family.keys} | tree
  found: dict[str, Any] = dict(family.fixed)
  told: dict[str, str] = {}
  for key in family.keys:
    if key.unread:
      continue
    said = f'{key.name}={shown(tree[key.name])}'
    try:
      value = key.read(tree[key.name], tree)
      value = spec.check_value(f'{path}: {said}', SETTINGS[key.setting], value)
    except (ValueError, TypeError, ZeroDivisionError) as e:
      reason = str(e) if isinstance(e, ValueError) else 'does not go with the other sizes'
      raise UserError(f'{path}: {said}: {reason}') from None
    if key.setting in told and found[key.setting] != value:
      raise UserError(f'{path}: {told[key.setting]} and {said}: are one setting here; equal ones run')
    found[key.setting], told[key.setting] = value, said
  try:
    return resolve(_bare(Config()).replace(**found))
  except UserError as e:
    raise UserError(f'{path}: {e}') from None


def _bare(config: Config) -> Config:
  """A config without text, whose tokenizer would have a say in the vocabulary."""
  return config.replace(**{'data.source': 'synthetic'})


def write_config(config: Config) -> tuple[Family, dict]:
  """The family that a resolved config belongs to, and its config.json.

  Raises UserError naming the setting that no family has.
  """
  refusals = []
  for family in FAMILIES.values():
    tree = {key.name: key.write(config.get(key.setting), config) for key in family.keys}
    tree |= {'model_type': family.model_type, 'architectures': [family.architecture]}
    different = _differences(config, family, tree)
    if not different:
      if 'rope_theta' in tree:  # as transformers 5 has it; before, it stood alone
        tree['rope_parameters'] = {'rope_type': 'default', 'rope_theta': tree['rope_theta']}
      return family, tree
    refusals.append((different, family))
  different, family = min(refusals, key=lambda refusal: len(refusal[0]))
  raise UserError(f'{different[0]}, which {family.model_type}, the nearest family, cannot express')


def _differences(config: Config, family: Family, tree: dict) -> list[str]:
  """What is lost if a config is written as `tree`: settings with what they would become."""
  try:
    back = _settings(Path('config.json'), family, tree)
  except UserError as e:
    return [str(e)] * len(SETTINGS)
  differ = (name for name in _DECISIVE if config.get(name) != back.get(name))
  found = [f'--{name}={config.get(name)}' for name in differ]
  if family.heads_divide and config.model.d_model % config.model.num_heads:
    found.append(f'--model.num_heads={config.model.num_heads}')
  if not found and count.shapes(config) != count.shapes(back):
    found.append(f'--ffn.ratios={config.ffn.ratios}')
  return found


