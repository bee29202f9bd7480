"""Settings: there and back through JSON, resolved once, hashed by what changes the result."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from tests import battery
from transformer.config import (
  PRESETS,
  SECTIONS,
  SETTINGS,
  Config,
  config_hash,
  hyper,
  resolve,
  result_settings,
  setting,
  static_key,
)
from transformer.config import settings as settings_module
from transformer.config.resolve import sort_settings
from transformer.errors import UserError
from transformer.spec import declare

CHANGED = {  # a value of every setting that is not the one of BASE
  'model.architecture': 'encoder',
  'model.d_model': 512,
  'model.num_layers': 3,
  'model.num_encoder_layers': 9,
  'model.num_heads': 8,
  'model.head_dim': 32,
  'model.v_head_dim': 16,
  'model.attention_window': 64,
  'model.vocab_size': 9000,
  'model.positions': 'learned',
  'model.num_kv_heads': 2,
  'model.norm': 'layernorm',
  'model.norm_placement': 'sandwich',
  'model.parallel_branches': True,
  'model.qk_norm': True,
  'model.bias': True,
  'model.qkv_bias': True,
  'model.logits_bias': True,
  'model.tied': False,
  'model.embedding_scale': 'one',
  'model.embedding_norm': True,
  'model.token_types': 2,
  'model.head': 'transform',
  'model.shared_source': False,
  'model.out_init': 0.0,
  'model.logit_cap': 30.0,
  'model.attention_cap': 50.0,
  'model.dropout': 0.1,
  'model.stochastic_depth': 0.2,
  'model.dtype': 'bfloat16',
  'model.remat': 'dots',
  'model.unroll': True,
  'ffn.ratio': 2.0,
  'ffn.d_ff': 640,
  'ffn.ratios': '2,4,8',
  'ffn.activation': 'relu',
  'ffn.encoder_ratios': '1,2,3',
  'ffn.encoder_activation': 'swiglu',
  'ffn.multiple_of': 100,
  'ffn.hidden_layers': 2,
  'ffn.shared': True,
  'ffn.bias': True,
  'ffn.dropout': 0.1,
  'ffn.down_init': 0.0,
  'moe.experts': 8,
  'moe.router': 'topk(k=3)',
  'moe.dispatch': 'dense',
  'moe.layers': 'every(2)',
  'moe.encoder_layers': 'last(1)',
  'moe.shared_experts': 1,
  'moe.granularity': 2,
  'moe.group_size': 32,
  'moe.capacity_factor': 2.0,
  'moe.eval_capacity_factor': 4.0,
  'moe.balance_loss': 0.1,
  'moe.z_loss': 0.0,
  'moe.allow_noncausal': True,
  'data.source': 'text:*.txt',
  'data.tokenizer': 'byte',
  'data.batch_size': 32,
  'data.seq_len': 64,
  'data.source_len': 32,
  'data.mask_token': 5,
  'data.held_out': 0.2,
  'data.text_field': 'body',
  'data.group_field': 'author',
  'data.cache': '/somewhere',
  'loss.mask_rate': 0.3,
  'loss.label_smoothing': 0.1,
  'loss.z_loss': 1e-3,
  'optim.name': 'adamw(b1=0.8)',
  'optim.learning_rate': 1e-3,
  'optim.schedule': 'cosine(warmup=0.2)',
  'optim.weight_decay': 0.0,
  'optim.clip_norm': 2.0,
  'optim.parametrization': 'mup',
  'optim.ema': 0.99,
  'train.steps': 7,
  'train.accumulate': 2,
  'train.decoded': 7,
  'train.max_bad_steps': 3,
  'train.log_every': 1,
  'train.eval_every': 5,
  'train.checkpoint_every': 5,
  'train.keep_last': 3,
  'train.keep_best': 0,
  'train.tensorboard': True,
  'train.wandb': 'lab',
  'train.ffn_statistics': False,
  'train.diagnose': 100,
  'train.init_from': 'runs/other',
  'train.init': 'continue',
  'parallel.mode': 'pmap',
  'parallel.mesh': 'data:2',
  'parallel.distributed': 'host:1234,0,2',
  'launch.workers': 3,
  'launch.retries': 5,
  'launch.together': 2,
  'launch.per_task': 2,
  'launch.throttle': 4,
  'launch.nodes': 2,
  'launch.cpus': 8,
  'launch.memory': '16G',
  'launch.gpus': 1,
  'launch.grace': 60,
  'launch.time': '4:00:00',
  'launch.partition': 'gpu',
  'launch.account': 'lab',
  'launch.qos': 'high',
  'launch.setup': 'module load cuda',
  'launch.image': 'lab/isoffn',
  'launch.namespace': 'lab',
  'launch.volume': 'runs:sweep',
  'launch.selector': 'gpu=h200',
  'launch.tpu': 'tpu-v5p-slice',
  'launch.tpu_topology': '2x2x4',
  'launch.tpus': 8,
  'seed': 1,
  'plugin': '/dev/null',
}
# What of CHANGED cannot run with the rest of it.
ALONE = {
  'parallel.mode': 'mesh',
  'model.qkv_bias': False,
  'ffn.shared': False,
  'model.embedding_scale': 'sqrt_d_model',
}
# Static slots in which CHANGED moves an argument that is traced.
TRACED_ARGUMENT = ('optim.name', 'optim.schedule')
BASE = Config().replace(
  **{
    'model.vocab_size': 8192,  # so that a tokenizer changes no shape
    'train.init_from': 'runs/some',  # which train.init says how to
    'data.source': 'jsonl:*.jsonl',  # which has fields
  }
)


OF_SOURCE = (
  *('model.num_encoder_layers', 'model.shared_source', 'data.source_len'),
  *('ffn.encoder_ratios', 'ffn.encoder_activation', 'train.decoded', 'moe.encoder_layers'),
)
OF_MASKS = ('model.token_types', 'data.mask_token', 'loss.mask_rate')
SOURCES = {'model.architecture': 'encoder_decoder', 'data.source': 'stdlib'}


def where(path: str) -> dict:
  """What makes a setting act, if it does not in a decoder."""
  if path in OF_MASKS:
    return {'model.architecture': 'encoder'}
  of_experts = {'moe.experts': 4} if path.startswith('moe.') and path != 'moe.experts' else {}
  of_experts |= {'moe.dispatch': 'capacity'} if 'capacity' in path else {}
  return of_experts | (SOURCES if path in OF_SOURCE else {})


def error(function, *args, **kwargs) -> str:
  with pytest.raises(UserError) as e:
    function(*args, **kwargs)
  return str(e.value)


def test_every_setting_is_declared_whole():
  for path, declared in SETTINGS.items():
    assert declared.metadata['kind'] in ('static', 'traced', 'free'), path
    assert declared.metadata['help'], path
    assert Config().get(path) == declared.default
    assert type(declared.default).__name__ == declared.type
  assert all(SECTIONS.values())


@pytest.mark.parametrize('path', CHANGED)
def test_what_a_setting_touches(path):
  base = BASE.replace(**where(path))
  before, after = resolve(base), resolve(base.replace(**{path: CHANGED[path]}))
  assert before.get(path) != after.get(path)
  kind = 'traced' if path in TRACED_ARGUMENT else SETTINGS[path].metadata['kind']
  assert (static_key(before) != static_key(after)) == (kind == 'static')
  assert (config_hash(before) != config_hash(after)) == (kind in ('static', 'traced'))


def test_every_setting_is_among_the_changed_ones():
  one = {p for p, d in SETTINGS.items() if len(d.metadata['choices'] or '..') == 1}
  assert set(CHANGED) == set(SETTINGS) - one


def test_hash_is_what_it_was():
  """Folders are named by it: if this fails, no finished run will be found again."""
  config = resolve(Config().replace(**PRESETS['pilot'], seed=3))
  assert result_settings(config) == {
    'model.d_model': 96,
    'model.num_layers': 2,
    'model.num_heads': 3,
    'model.head_dim': 32,
    'model.vocab_size': 1024,
    'ffn.d_ff': 384,
    'data.tokenizer.vocab_size': 1024,
    'data.seq_len': 64,
    'optim.learning_rate': 0.008,
    'train.steps': 400,
    'seed': 3,
  }
  assert config_hash(config) == 'abfd75de'


def test_hash_ignores_defaults_spelt_out():
  asked = {'ffn.activation': 'gelu()', 'optim.name': 'adamw(b1=0.9)', 'train.accumulate': 1}
  assert config_hash(resolve(Config().replace(**asked))) == config_hash(resolve(Config()))


def test_a_setting_added_later_changes_no_hash(monkeypatch):
  configs = [resolve(Config().replace(**c)) for c in ({}, {'model.norm': 'layernorm'})]
  before = [config_hash(c) for c in configs]
  sys.modules['transformer.config.resolve']._defaults.cache_clear()
  later = dataclasses.field(default=5, metadata=setting(5, 'later').metadata)
  later.name, later.type = 'train.later', 'int'
  monkeypatch.setitem(settings_module.SETTINGS, 'train.later', later)
  monkeypatch.setattr(
    Config, 'get', lambda s, path, get=Config.get: get(s, path) if path != 'train.later' else 5
  )
  assert 'train.later' in static_key(configs[0])
  assert [config_hash(c) for c in configs] == before


@pytest.mark.parametrize('variant', ['rmsnorm', 'layernorm'])
def test_an_argument_added_later_changes_no_hash(variant, monkeypatch):
  from transformer import spec

  config = resolve(Config().replace(**{'model.norm': variant}))
  before = config_hash(config)
  monkeypatch.setitem(spec._DECLARED, 'model.norm', dict(spec.variants('model.norm')))
  old = spec._DECLARED['model.norm'].pop(variant)
  fields = dataclasses.fields(old)
  later = {f.name: setting(f.default, 'old', low=f.metadata['low']) for f in fields}
  later |= {'centre': setting(True, 'new'), 'leaves': old.leaves}
  later['__annotations__'] = {f.name: f.type for f in fields} | {'centre': 'bool'}
  declare('model.norm', variant)(type('Later', (), later))
  assert 'model.norm.centre' in static_key(config)
  assert config_hash(config) == before
  assert config_hash(config.replace(**{'model.norm': f'{variant}(centre=False)'})) != before


def test_hyper_is_what_the_step_reads():
  config = resolve(Config().replace(**{'optim.schedule': 'cosine(final=0)', 'train.steps': 7}))
  assert hyper(config) == {
    'loss.z_loss': 0.0,
    'optim.learning_rate': 0.003,
    'optim.name.b1': 0.9,
    'optim.name.b2': 0.95,
    'optim.name.eps': 1e-8,
    'optim.schedule.warmup': 0.1,
    'optim.schedule.final': 0.0,
    'optim.weight_decay': 0.1,
    'optim.clip_norm': 1.0,
    'train.steps': 7.0,
  }


@pytest.mark.parametrize(
  'changes',
  [
    *PRESETS.values(),
    CHANGED | ALONE,
    CHANGED | ALONE | SOURCES,
    CHANGED | ALONE | {'model.architecture': 'decoder'},
  ],
)
def test_json_and_resolve_are_idempotent(changes):
  asked = Config().replace(**changes)
  resolved = resolve(asked)
  assert resolve(resolved) == resolved
  for config in (asked, resolved):
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'ffn.dff': 1}, '--ffn.dff: no such setting; did you mean ffn.d_ff?'),
    ({'ffn': 1}, '--ffn: no such setting; did you mean ffn.d_ff?'),
    ({'ffn.d_ff': 1.5}, '--ffn.d_ff: 1.5 should be of type int'),
    ({'ffn.d_ff': -1}, '--ffn.d_ff: -1 is below the least allowed, 0'),
    ({'model.bias': 1}, '--model.bias: 1 should be of type bool'),
    ({'model.dropout': 1}, '--model.dropout: 1.0 is above the most allowed, 0.95'),
    (
      {'model.stochastic_depth': 0.96},
      '--model.stochastic_depth: 0.96 is above the most allowed, 0.95',
    ),
    ({'ffn.hidden_layers': 3}, '--ffn.hidden_layers: 3 is above the most allowed, 2'),
    ({'model.logit_cap': -1}, '--model.logit_cap: -1.0 is below the least allowed, 0.0'),
    (
      {'model.norm_placement': 'past'},
      "--model.norm_placement: no choice 'past'; did you mean post?",
    ),
    ({'model.dtype': 'float16'}, "--model.dtype: no choice 'float16'; did you mean bfloat16?"),
    ({'optim.clip_norm': float('nan')}, '--optim.clip_norm: nan is not a number to run with'),
    ({'optim.clip_norm': float('inf')}, '--optim.clip_norm: inf is not a number to run with'),
    ({'optim.clip_norm': 10**400}, '--optim.clip_norm: inf is not a number to run with'),
    ({'seed': 2**31}, '--seed: 2147483648 is above the most allowed, 2147483647'),
    ({'seed': '1'}, "--seed: '1' should be of type int"),
  ],
)
def test_replace_refuses(changes, message):
  assert error(Config().replace, **changes) == message


@pytest.mark.parametrize(
  ('tree', 'message'),
  [
    ({'ffn': {'dff': 1}}, "f.json: no setting 'ffn.dff'; did you mean ffn.d_ff?"),
    ({'moddel': {'bias': True}}, "f.json: no setting 'moddel.bias'; did you mean model.bias?"),
    ({'model': 5}, "f.json: no setting 'model'; did you mean model.tied?"),
    ({'seed': {'x': 1}}, "f.json: no setting 'seed.x'; did you mean seed?"),
    ({'ffn': {'d_ff': '1'}}, "--ffn.d_ff: '1' should be of type int"),
  ],
)
def test_from_json_refuses(tree, message):
  assert error(Config.from_json, tree, 'f.json') == message


def test_replace_takes_integers_for_floats_and_leaves_the_original():
  config = Config()
  assert config.replace(**{'ffn.ratio': 3}).ffn.ratio == 3.0
  assert config == Config()


def test_tiny_is_resolved():
  assert resolve(battery.tiny()) == battery.tiny()


def test_every_traced_number_reaches_the_step():
  """Two configs of one program may differ in nothing that the step cannot read at run time."""
  config = resolve(Config().replace(**{'moe.experts': 4}))
  for path, value in sort_settings(config, ('traced',)).items():
    # These reach it as key, as batches and as the state it begins with; or come after the last one.
    of_the_host = path.startswith(('seed', 'data.', 'train.init', 'train.decoded'))
    assert (path in hyper(config)) != of_the_host, path
    assert of_the_host or isinstance(value, (int, float)), path


def test_a_module_has_no_traced_arguments():
  with pytest.raises(ValueError, match='all are static'):

    @declare('ffn.activation', 'never')
    class Never:
      """Nothing."""

      slope: float = setting(0.1, 'of nothing', kind='traced')
