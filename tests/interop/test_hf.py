"""Checkpoints of transformers: the originals' logits, exact round trips, older and other files."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.battery import flat, same_bits, stir
from tests.interop import goldens
from transformer import count, model, spec
from transformer.errors import UserError
from transformer.interop import hf
from transformer.interop.families import FAMILIES

TOLERANCE = 1e-5


@pytest.mark.parametrize('name', goldens.NAMES)
def test_logits_are_the_originals(name: str) -> None:
  config, params = hf.load(goldens.FOLDER / name)
  assert all(x.dtype == np.float32 for x in flat(params).values())
  assert goldens.difference(name, config, params) < TOLERANCE


@pytest.mark.parametrize('name', goldens.NAMES)
def test_every_parameter_is_in_the_logits(name: str) -> None:
  """The negative control: whichever is moved, the logits are others."""
  config, params = hf.load(goldens.FOLDER / name)
  rotary = spec.parse('model.positions', config.model.positions).variant == 'rotary'
  for path in count.shapes(config):
    difference = goldens.difference(name, config, stir(params, path))
    if path.endswith('key_bias') and not rotary:  # adds one number to all scores of a query
      assert difference < TOLERANCE, path
    else:
      assert difference > 1e-3, path


@pytest.mark.parametrize('name', goldens.NAMES)
def test_round_trip_is_exact(name: str, tmp_path: Path) -> None:
  config, params = hf.load(goldens.FOLDER / name)
  hf.save(tmp_path / 'out', config, params)
  again, back = hf.load(tmp_path / 'out')
  assert same_bits(params, back)
  assert again == config
  theirs, ours = goldens.tensors(goldens.FOLDER / name), goldens.tensors(tmp_path / 'out')
  if name == 'bert_untied':  # does not enter the logits; it is the bias that does
    assert (ours['cls.predictions.bias'] == theirs['cls.predictions.decoder.bias']).all()
    theirs['cls.predictions.bias'] = ours['cls.predictions.bias']
  assert same_bits(theirs, ours)


def test_all_families_have_goldens() -> None:
  kinds = {
    json.loads((goldens.FOLDER / n / 'config.json').read_text())['model_type']
    for n in goldens.NAMES
  }
  assert kinds == set(FAMILIES)


@pytest.mark.parametrize('name', ['llama', 'mistral', 'marian'])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_may_stand_on_either_side(name: str, side: str) -> None:
  config, params = hf.load(goldens.FOLDER / name)
  given = goldens.arrays(name)
  tokens = given['source_BS' if name == 'marian' else 'ids_BT'][:1, :5]
  pad = np.full((1, 3), -1, np.int32)
  parts, kept = ([pad, tokens], slice(3, None)) if side == 'left' else ([tokens, pad], slice(0, 5))
  rest = [given['ids_BT'][:1]] if name == 'marian' else []
  alone = goldens.logits(config, params, tokens, *rest)
  beside = goldens.logits(config, params, np.concatenate(parts, 1), *rest)
  beside = beside if name == 'marian' else beside[:, kept]
  np.testing.assert_allclose(beside, alone, atol=TOLERANCE)


@pytest.mark.parametrize('kind', ['bfloat16', 'float16'])
def test_half_precision_in_shards(kind: str, tmp_path: Path) -> None:
  folder = goldens.copy('llama', tmp_path / 'in')
  found = {n: goldens.halved(x, kind) for n, x in goldens.tensors(folder).items()}
  names = sorted(found)
  files = {n: f'model-0000{1 + (k % 2)}-of-00002.safetensors' for k, n in enumerate(names)}
  for file in set(files.values()):
    goldens.put(folder, {n: found[n] for n in names if files[n] == file}, file)
  (folder / 'model.safetensors').unlink()
  index = {'metadata': {'total_size': 1}, 'weight_map': files}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  goldens.edit(folder, dtype=kind)
  config, params = hf.load(folder)
  assert all(x.dtype == np.float32 for x in flat(params).values())
  hf.save(tmp_path / 'out', config, params)
  again = goldens.tensors(tmp_path / 'out')
  assert same_bits({n: x.astype(np.float32) for n, x in found.items()}, again)
  assert goldens.difference('llama', config, params) < 0.2


OLD_ROPE = dict(rope_parameters=None, rope_theta=500.0, rope_scaling='@null')


@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    ('llama', OLD_ROPE),
    (
      'llama',
      OLD_ROPE
      | {
        'pretraining_tp': 2,
        'some_feature': '@null',
        '_name_or_path': 'x',
        'torch_dtype': 'float32',
      },
    ),
    (
      'llama',
      dict(rope_parameters=None, rope_scaling={'rope_type': 'default', 'rope_theta': 500.0}),
    ),
    ('llama_tied', dict(num_key_value_heads='@null', hidden_act='gelu_python')),
    ('mistral_open', dict(hidden_act='gelu_new', rope_parameters=None)),
    ('mixtral', dict(router_jitter_noise=None, router_aux_loss_coef=0.02)),
    ('gpt2', dict(n_ctx=12, n_inner=40, scale_attn_weights=None, tie_word_embeddings=None)),
    ('gpt2_untied', dict(n_inner=None)),
    ('bert', dict(position_embedding_type='absolute', tie_word_embeddings=None)),
    ('marian', dict(static_position_embeddings=True, normalize_before=False, num_beams=6)),
    ('marian', dict(decoder_vocab_size=None, activation_function='silu', bad_words_ids=[[58]])),
  ],
)
def test_other_spellings(name: str, changes: dict, tmp_path: Path) -> None:
  folder = goldens.copy(name, tmp_path / 'in')
  goldens.edit(folder, **changes)
  assert goldens.difference(name, *hf.load(folder)) < TOLERANCE


def test_the_base_of_rotary_positions_is_read(tmp_path: Path) -> None:
  folder = goldens.copy('llama', tmp_path / 'in')
  goldens.edit(folder, rope_parameters=None, rope_theta=400.0)
  assert goldens.difference('llama', *hf.load(folder)) > 1e-3


def test_the_window_is_read(tmp_path: Path) -> None:
  for window in (4, '@null'):
    folder = goldens.copy('mistral', tmp_path / str(window))
    goldens.edit(folder, sliding_window=window)
    assert goldens.difference('mistral', *hf.load(folder)) > 1e-3


def test_how_many_experts_a_token_has_is_read(tmp_path: Path) -> None:
  folder = goldens.copy('mixtral', tmp_path / 'in')
  goldens.edit(folder, num_experts_per_tok=3)
  assert goldens.difference('mixtral', *hf.load(folder)) > 1e-3


def test_the_balance_loss_is_the_originals_over_k_where_one_layer_and_row_are_all() -> None:
  for name, k, layers in (('mixtral_tied', 3, 1), ('mixtral', 2, 2)):
    config, params = hf.load(goldens.FOLDER / name)
    given = goldens.arrays(name)
    _, aux = jax.jit(model.build(config).apply)({'params': params}, given['ids_BT'][:1])
    found = k * float(np.mean(aux.losses['balance']))
    if layers == 1:
      assert found == pytest.approx(given['balance'], rel=1e-5)
    else:  # theirs is of the loads of all layers together, which can be even where no layer's is
      assert found > given['balance'] + 0.01


def test_a_softmax_over_the_chosen_is_written_as_one_over_all(tmp_path: Path) -> None:
  config, params = hf.load(goldens.FOLDER / 'mixtral')
  hf.save(tmp_path / 'out', config.replace(**{'moe.router': "topk(score='after')"}), params)
  again, back = hf.load(tmp_path / 'out')
  assert again == config.replace(**{'moe.router': 'topk'})
  assert same_bits(params, back)


def _older(name: str, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Names and tensors as older files have them."""
  table = next(x for n, x in found.items() if n.endswith(('wte.weight', 'word_embeddings.weight',
    'embed_tokens.weight', 'shared.weight')))  # fmt: skip
  mask = np.ones((1, 1, 12, 12), np.uint8)
  if name == 'gpt2':
    masks = {f'h.{i}.attn.{n}': mask for i in range(2) for n in ('bias', 'masked_bias')}
    return {n.removeprefix('transformer.'): x for n, x in found.items()} | masks
  if name == 'llama_tied':
    inverse = {f'model.layers.{i}.self_attn.rotary_emb.inv_freq': mask for i in range(3)}
    return found | inverse | {'lm_head.weight': table}
  if name == 'bert':
    names = {'LayerNorm.weight': 'LayerNorm.gamma', 'LayerNorm.bias': 'LayerNorm.beta'}
    renamed = {}
    for n, x in found.items():
      for new, old in names.items():
        n = n.replace(new, old)
      renamed[n] = x
    more = ('bert.pooler.dense.weight', 'bert.pooler.dense.bias', 'cls.seq_relationship.weight',
      'cls.seq_relationship.bias', 'bert.embeddings.position_ids')  # fmt: skip
    tied = {'decoder.weight': table, 'decoder.bias': found['cls.predictions.bias']}
    return (
      renamed | dict.fromkeys(more, mask) | {f'cls.predictions.{n}': x for n, x in tied.items()}
    )
  assert name == 'marian'
  angle = np.arange(16)[:, None] * 10000.0 ** (-np.arange(8) / 8)
  places = np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float16)
  sides = {f'model.{side}.embed_positions.weight': places for side in ('encoder', 'decoder')}
  tied = (
    'lm_head.weight',
    'model.encoder.embed_tokens.weight',
    'model.decoder.embed_tokens.weight',
  )
  return found | sides | dict.fromkeys(tied, table)


@pytest.mark.parametrize('name', ['gpt2', 'llama_tied', 'bert', 'marian'])
def test_older_files(name: str, tmp_path: Path) -> None:
  folder = goldens.copy(name, tmp_path / 'in')
  before = goldens.tensors(folder)
  goldens.put(folder, older := _older(name, before))
  assert len(older) > len(before)
  config, params = hf.load(folder)
  assert goldens.difference(name, config, params) < TOLERANCE
  hf.save(tmp_path / 'out', config, params)
  assert same_bits(goldens.tensors(tmp_path / 'out'), before)


@pytest.mark.parametrize(
  ('name', 'tied'),
  [
    ('gpt2', 'lm_head.weight'),
    ('bert', 'cls.predictions.decoder.bias'),
    ('marian', 'model.encoder.embed_tokens.weight'),
  ],
)
def test_a_copy_that_is_none_is_refused(name: str, tied: str, tmp_path: Path) -> None:
  folder = goldens.copy(name, tmp_path / 'in')
  found = goldens.tensors(folder)
  whole = {'gpt2': 'transformer.wte.weight', 'bert': 'cls.predictions.bias'}
  found[tied] = found[whole.get(name, 'model.shared.weight')] + np.float32(1e-3)
  goldens.put(folder, found)
  with pytest.raises(UserError) as e:
    hf.load(folder)
  assert str(e.value) == f'{folder}: tensor {tied} should equal the one it is tied to'


def test_other_positions_are_refused(tmp_path: Path) -> None:
  folder = goldens.copy('marian', tmp_path / 'in')
  found = _older('marian', goldens.tensors(folder))
  name = 'model.encoder.embed_positions.weight'
  found[name] = np.ascontiguousarray(
    found[name].reshape(16, 2, 8).transpose(0, 2, 1).reshape(16, 16)
  )
  goldens.put(folder, found)
  with pytest.raises(UserError) as e:
    hf.load(folder)
  assert str(e.value) == (f'{folder}: tensor {name} holds other positions than sines, then cosines')


def test_a_mistral_without_a_window_is_a_llama(tmp_path: Path) -> None:
  """Where transformers' Llama takes its sizes; mistral_open has 4 heads in a d_model of 14."""
  folder = goldens.copy('mistral', tmp_path / 'in')
  goldens.edit(folder, sliding_window='@null')
  for source, kind in ((folder, 'llama'), (goldens.FOLDER / 'mistral_open', 'mistral')):
    out = tmp_path / kind
    hf.save(out, *hf.load(source))
    tree = json.loads((out / 'config.json').read_text())
    assert tree['model_type'] == kind
    assert tree['rope_parameters'] == {'rope_type': 'default', 'rope_theta': 10000.0}
