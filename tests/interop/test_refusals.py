"""What is not a checkpoint this library knows: one line each, naming file and key or tensor."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.battery import tiny
from tests.interop import goldens
from transformer.errors import UserError
from transformer.interop import hf

LONG = {'quant_method': 'gptq', 'bits': 4, 'note': 'x' * 99}
FEATURES = [
  ('llama', {'rope_scaling': {'type': 'linear', 'factor': 2.0}},
   'rope_scaling.type="linear" is not supported; llama is known with "default" alone'),
  ('llama', {'rope_parameters': {'rope_type': 'llama3', 'factor': 8.0}},
   'rope_parameters.rope_type="llama3" is not supported; llama is known with "default" alone'),
  ('llama', {'rope_parameters': {'rope_type': 'default', 'factor': 8.0}},
   'rope_parameters.factor=8.0 is a feature of llama that is not known'),
  ('llama', {'rope_scaling': 'dynamic'},
   'rope_scaling="dynamic" is a feature of llama that is not known'),
  ('llama', {'quantization_config': LONG},
   'quantization_config={"quant_method": "gptq", "bits": 4, "note": "' + 'x' * 34
   + '… is not supported; llama is known with null alone'),
  ('llama', {'partial_rotary_factor': 0.5},
   'partial_rotary_factor=0.5 is a feature of llama that is not known'),
  ('llama', {'attention_bias': 1}, "attention_bias=1: 1 should be of type bool"),
  ('llama', {'hidden_act': 'xielu'}, 'hidden_act="xielu": should be one of gelu, gelu_python, '
   'gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate, silu, swish, relu, relu2, sigmoid, '
   'tanh, mish, leaky_relu, linear'),
  ('llama', {'hidden_act': ['silu']}, 'hidden_act=["silu"]: should be one of gelu, gelu_python, '
   'gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate, silu, swish, relu, relu2, sigmoid, '
   'tanh, mish, leaky_relu, linear'),
  ('llama', {'rms_norm_eps': 'small'}, 'rms_norm_eps="small": should be a number'),
  ('llama', {'rms_norm_eps': -1.0},
   '--model.norm=rmsnorm(epsilon=-1.0): epsilon: -1.0 is below the least allowed, 0.0'),
  ('llama', {'hidden_size': 12.0}, 'hidden_size=12.0: 12.0 should be of type int'),
  ('llama', {'num_key_value_heads': 3},
   '--model.num_kv_heads=3: does not divide --model.num_heads=4'),
  ('llama', {'num_hidden_layers': 10**9},
   'num_hidden_layers=1000000000: 1000000000 is above the most allowed, 100000'),
  ('marian', {'encoder_ffn_dim': 'wide'},
   'encoder_ffn_dim="wide": does not go with the other sizes'),
  ('mistral', {'layer_types': ['full_attention']},
   'layer_types=["full_attention"] is a feature of mistral that is not known'),
  ('mixtral', {'num_local_experts': 0}, 'num_local_experts=0: should be above 0'),
  ('mixtral', {'num_local_experts': 1},
   '--moe.router=topk(jitter=0.1): k=2 is above --moe.experts=1; lower it'),
  ('mixtral', {'num_experts_per_tok': 1}, 'num_experts_per_tok=1: its one weight is always 1, so '
   'the router is never trained; 2 or more run'),
  ('mixtral', {'num_experts_per_tok': 'two'},
   "--moe.router=topk(k='two', jitter=0.1): k: 'two' should be of type int"),
  ('mixtral', {'router_jitter_noise': 1.5},
   '--moe.router=topk(k=2, jitter=1.5): jitter: 1.5 is above the most allowed, 0.9'),
  ('mixtral', {'shared_expert_intermediate_size': 9},
   'shared_expert_intermediate_size=9 is a feature of mixtral that is not known'),
  ('gpt2', {'scale_attn_by_inverse_layer_idx': True},
   'scale_attn_by_inverse_layer_idx=true is not supported; gpt2 is known with false alone'),
  ('gpt2', {'reorder_and_upcast_attn': True},
   'reorder_and_upcast_attn=true is not supported; gpt2 is known with false alone'),
  ('gpt2', {'scale_attn_weights': False},
   'scale_attn_weights=false is not supported; gpt2 is known with true alone'),
  ('gpt2', {'add_cross_attention': True},
   'add_cross_attention=true is not supported; gpt2 is known with false alone'),
  ('bert', {'position_embedding_type': 'relative_key'},
   'position_embedding_type="relative_key" is not supported; bert is known with "absolute" alone'),
  ('bert', {'is_decoder': True},
   'is_decoder=true is not supported; bert is known with false alone'),
  ('marian', {'normalize_before': True},
   'normalize_before=true is not supported; marian is known with false alone'),
  ('marian', {'encoder_attention_heads': 2}, 'decoder_attention_heads=4 and '
   'encoder_attention_heads=2: are one setting here; equal ones run'),
  ('marian', {'decoder_vocab_size': 60},
   'vocab_size=59 and decoder_vocab_size=60: are one setting here; equal ones run'),
  ('marian', {'d_model': 0}, 'd_model=0: 0 is below the least allowed, 1'),
  ('gpt2', {'model_type': 'gpt_neox'},
   'model_type="gpt_neox" is not known; there are gpt2, llama, mistral, mixtral, bert, marian'),
  ('gpt2', {'model_type': None},
   'model_type=null is not known; there are gpt2, llama, mistral, mixtral, bert, marian'),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'changes', 'text'), FEATURES)
def test_unknown_features(name: str, changes: dict, text: str, tmp_path: Path) -> None:
  folder = goldens.copy(name, tmp_path / 'in')
  goldens.edit(folder, **changes)
  assert _refusal(folder) == f'{folder}/config.json: {text}'


def _refusal(folder: Path) -> str:
  with pytest.raises(UserError) as e:
    hf.load(folder)
  assert '\n' not in str(e.value)
  return str(e.value)


def _bytes(header: Any, data: bytes = b'\0' * 16) -> bytes:
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(header)) + header + data


def _entry(shape: list[int], end: int, kind: str = 'F32') -> dict:
  return {'dtype': kind, 'shape': shape, 'data_offsets': [0, end]}


WHOLE = (goldens.FOLDER / 'gpt2' / 'model.safetensors').read_bytes()
TWICE = b'{"a":%s,"a":%s}' % ((json.dumps(_entry([4], 16)).encode(),) * 2)
NOT_COVERED = 'incomplete metadata, file not fully covered'
BROKEN = {
  'cut short': (WHOLE[:-100], NOT_COVERED),
  'cut in the header': (WHOLE[:500], 'invalid header length'),
  'empty': (b'', 'header too small'),
  'text': (b'version https://git-lfs.github.com/spec/v1\n', 'header too large'),
  'a header beyond the file': (struct.pack('<Q', 10**6) + WHOLE[8:], 'invalid header length'),
  'offsets past the end': (_bytes({'a': _entry([99], 396)}), NOT_COVERED),
  'offsets against the shape': (
    _bytes({'a': _entry([5], 16)}),
    'invalid shape, data type, or offset for tensor',
  ),
  'a header of no JSON': (
    _bytes(b'{nothing}'),
    'invalid JSON in header: key must be a string at line 1 column 2',
  ),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_files(kind: str, tmp_path: Path) -> None:
  folder = goldens.copy('gpt2', tmp_path / 'in')
  content, reason = BROKEN[kind]
  path = folder / 'model.safetensors'
  path.write_bytes(content)
  assert _refusal(folder) == f'{path}: is no whole safetensors file ({reason}); fetch it again'


def test_a_name_twice_in_a_header(tmp_path: Path) -> None:
  folder = goldens.copy('gpt2', tmp_path / 'in')
  path = folder / 'model.safetensors'
  path.write_bytes(_bytes(TWICE))
  assert _refusal(folder) == f'{path}: lists a twice in its header; fetch it again'


WTE = 'transformer.wte.weight'


def _spoilt(tmp_path: Path, change: Any) -> tuple[Path, str]:
  folder = goldens.copy('gpt2', tmp_path / 'in')
  found = goldens.tensors(folder)
  change(found)
  goldens.put(folder, found)
  return folder, _refusal(folder)


def test_other_tensors(tmp_path: Path) -> None:
  def spoilt(name: str, change: Any) -> str:
    folder, text = _spoilt(tmp_path / name, change)
    return text.replace(f'{folder}/', '').replace(f'{folder}: ', '')

  first = 'transformer.h.0.ln_1.bias'
  assert spoilt('missing', lambda t: t.pop(first)) == f'tensor {first} is missing'
  assert spoilt('unknown', lambda t: t.update(lora=t[first])) == (
    'tensor lora is not one of GPT2LMHeadModel'
  )
  assert spoilt('shape', lambda t: t.update({WTE: t[WTE][1:]})) == (
    f'tensor {WTE} has shape (60, 18); by its config.json it should have (61, 18)'
  )
  assert spoilt('type', lambda t: t.update({WTE: t[WTE].astype(np.int32)})) == (
    f'model.safetensors: tensor {WTE} is of type I32, not one of F32, F16, BF16'
  )
  assert spoilt('twice', lambda t: t.update({'wte.weight': t[WTE]})) == (
    f'tensor {WTE} is there twice, also as wte.weight'
  )


def test_more_layers_than_there_are(tmp_path: Path) -> None:
  folder = goldens.copy('gpt2', tmp_path / 'in')
  goldens.edit(folder, n_layer=3)
  assert _refusal(folder) == f'{folder}: tensor transformer.h.2.ln_1.weight is missing'
  goldens.edit(folder, n_layer=1)
  assert _refusal(folder).endswith('is not one of GPT2LMHeadModel')


def test_no_checkpoint(tmp_path: Path) -> None:
  folder = goldens.copy('gpt2', tmp_path / 'in')
  how = 'write one with transformers: model.save_pretrained(folder, safe_serialization=True)'
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  assert _refusal(folder) == (
    f'{folder}: no model.safetensors in it, only pytorch_model.bin; {how}'
  )
  (folder / 'pytorch_model.bin').unlink()
  assert _refusal(folder) == f'{folder}: no model.safetensors in it, none; {how}'
  path = folder / 'config.json'
  path.write_text('[1]')
  assert _refusal(folder) == f'{path}: should hold a JSON object'
  path.write_text('{"model_type": ')
  assert _refusal(folder) == f'{path}: should hold a JSON object'
  path.write_bytes(b'\xff\xfe')
  assert _refusal(folder) == f'{path}: should hold a JSON object'
  path.unlink()
  assert _refusal(folder) == (
    f'{path}: cannot be read (No such file or directory); name a folder that has it'
  )
  assert _refusal(tmp_path / 'none') == (
    f'{tmp_path}/none: is no folder; name one with config.json and model.safetensors'
  )


def test_lying_indices(tmp_path: Path) -> None:
  folder = goldens.copy('gpt2', tmp_path / 'in')
  (folder / 'model.safetensors').rename(folder / 'a.safetensors')
  names = dict.fromkeys(goldens.tensors(goldens.FOLDER / 'gpt2'), 'a.safetensors')
  index = folder / 'model.safetensors.index.json'

  def said(tree: Any) -> str:
    index.write_text(json.dumps(tree))
    return _refusal(folder).replace(f'{folder}/', '')

  assert said({}) == f'{index.name}: has no weight_map of tensor names to files'
  assert said({'weight_map': names | {'more': 'a.safetensors'}}) == (
    f'{index.name}: places tensor more in a.safetensors, which lacks it'
  )
  assert said({'weight_map': {n: names[n] for n in sorted(names)[1:]}}) == (
    f'a.safetensors: holds tensor {sorted(names)[0]}, which {index.name} does not place there'
  )
  assert said({'weight_map': names | {'more': '../b.safetensors'}}) == (
    f"{index.name}: names the file '../b.safetensors'; it should lie in the same folder"
  )
  assert said({'weight_map': names | {'more': ['a.safetensors']}}) == (
    f"{index.name}: names the file ['a.safetensors']; it should lie in the same folder"
  )
  assert said({'weight_map': names | {'more': 'b.safetensors'}}).startswith(
    'b.safetensors: cannot be read'
  )


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
  folder = goldens.copy('gpt2', tmp_path / 'in')
  vocab = {f'w{i}': i for i in range(62)}
  (folder / 'tokenizer.json').write_text(json.dumps({'model': {'vocab': vocab}}))
  assert _refusal(folder) == (
    f'{folder}/tokenizer.json: has ids up to 61, the model a vocabulary of 61; give the tokenizer '
    'that belongs to it'
  )
  (folder / 'tokenizer.json').write_text('{}')
  assert _refusal(folder) == (
    f'{folder}/tokenizer.json: is not a tokenizer.json of Hugging Face or of a run'
  )


LLAMA = {
  'model.embedding_scale': 'one',
  'model.tied': False,
  'ffn.activation': 'swiglu',
}
MIXTRAL = LLAMA | {'moe.experts': 4}
UNWRITABLE = [
  ({'ffn.activation': 'swish'}, '--ffn.activation=swish: no family of transformers is such a '
   'model; llama, the nearest, has ffn.activation=swiglu'),
  ({'model.embedding_scale': 'sqrt_d_model', 'model.qk_norm': True},
   '--model.qk_norm=True: no family of transformers is such a model; llama, the nearest, has '
   'model.qk_norm=False, model.embedding_scale=one'),
  ({'model.v_head_dim': 4}, '--model.v_head_dim=4: no family of transformers is such a model; '
   'llama, the nearest, has model.v_head_dim=0'),
  ({'ffn.ratios': '1,2'}, '--ffn.ratios=1,2: no family of transformers is such a model; llama, the '
   'nearest, has ffn.ratios=24'),
  ({'optim.parametrization': 'mup', 'model.embedding_scale': 'sqrt_d_model'},
   '--model.embedding_scale=sqrt_d_model: no family of transformers is such a model; llama, the '
   'nearest, has model.embedding_scale=one, optim.parametrization=standard'),
  ({'ffn.d_ff': 0, 'ffn.ratio': 0.0}, '--ffn.d_ff=0: no family of transformers is such a model; '
   'llama, the nearest, has ffn.d_ff=a number above 0, ffn.activation=swiglu'),
  ({'model.num_heads': 0, 'model.positions': 'none'}, '--model.num_heads=0: no family of '
   'transformers is such a model; gpt2, the nearest, has model.num_heads=a divisor of 16, '
   'model.positions=learned, model.norm=layernorm, model.bias=False, ffn.activation=gelu_tanh'),
  *((MIXTRAL | changes, f'--{flag}: no family of transformers is such a model; mixtral, the '
     f'nearest, has {has}') for changes, flag, has in [
    ({'moe.router': 'switch'}, 'moe.router=switch', 'moe.router=topk'),
    ({'moe.router': 'topk(k=1, renormalise=False)'}, 'moe.router=topk(k=1, renormalise=False)',
     'moe.router=topk'),
    ({'moe.router': "bias(k=3)"}, 'moe.router=bias(k=3)', 'moe.router=topk'),
    ({'moe.router': 'hash'}, 'moe.router=hash', 'moe.router=topk'),
    ({'moe.shared_experts': 1}, 'moe.shared_experts=1', 'moe.shared_experts=0'),
    ({'moe.granularity': 2}, 'moe.granularity=2', 'moe.granularity=1'),
    ({'moe.layers': 'last(1)'}, 'moe.layers=last(1)', 'moe.layers=all'),
  ]),
  (MIXTRAL | {'ffn.bias': True}, '--moe.experts=4: no family of transformers is such a model; '
   'llama, the nearest, has moe.experts=0'),
  ({'model.attention_window': 3, 'model.bias': True}, '--model.attention_window=3: no family of '
   'transformers is such a model; llama, the nearest, has model.attention_window=0'),
]  # fmt: skip


@pytest.mark.parametrize(('changes', 'text'), UNWRITABLE)
def test_settings_that_no_family_has(changes: dict, text: str, tmp_path: Path) -> None:
  with pytest.raises(UserError) as e:
    hf.save(tmp_path / 'out', tiny(**LLAMA | changes), {})
  assert str(e.value) == text
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_or_half_written(tmp_path: Path) -> None:
  config, params = hf.load(goldens.FOLDER / 'gpt2')
  (tmp_path / 'out').mkdir()
  hf.save(tmp_path / 'out', config, params)
  with pytest.raises(UserError) as e:
    hf.save(tmp_path / 'out', config, params)
  assert str(e.value) == (
    f'{tmp_path}/out: is there already; name a folder that is not, or is empty'
  )
  with pytest.raises(ValueError, match='params do not fit the config at embed/table'):
    hf.save(tmp_path / 'other', config, {k: v for k, v in params.items() if k != 'embed'})
  assert [path.name for path in tmp_path.iterdir()] == ['out']
