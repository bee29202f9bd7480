"""What config.json and the tensors of each family are here: one table a family, read both ways."""

from __future__ import annotations

from typing import Any

from transformer.config import Config, routing, widths
from transformer.interop.family import (
  SHARED,
  TIED,
  UNSHARED,
  UNTIED,
  Family,
  attention,
  dense,
  norm,
  table,
)
from transformer.interop.keys import GATED, PLAIN, Key, argument, null_is_0, one_of
from transformer.interop.layout import Tensor


def _heads(parts: str) -> tuple[tuple[str, str], ...]:
  """GPT-2's query, key and value, side by side in one matrix or bias."""
  layouts = {'query': '(NH)', 'key': '(KH)', 'value': '(KW)'}
  bias = '' if parts else '_bias'
  return tuple((f'layers/attention/{n}{bias}', parts + rows) for n, rows in layouts.items())


# --- GPT-2 (Radford et al. 2019): its Conv1D keeps matrices as (in, out).

_GPT2 = 'transformer.h.{}.'
GPT2 = Family(
  'gpt2',
  'GPT2LMHeadModel',
  keys=(
    Key('vocab_size', 'model.vocab_size', 50257),
    Key('n_positions', 'data.seq_len', 1024),
    Key('n_embd', 'model.d_model', 768),
    Key('n_layer', 'model.num_layers', 12),
    Key('n_head', 'model.num_heads', 12),
    null_is_0('n_inner', 'ffn.d_ff'),  # 0: ffn.ratio, 4, times d_model, as null is there
    one_of('activation_function', 'ffn.activation', 'gelu_new', PLAIN),
    argument('layer_norm_epsilon', 'model.norm', 'layernorm', 'epsilon', 1e-5),
    Key('resid_pdrop', 'model.dropout', 0.1),
    Key('embd_pdrop', 'model.dropout', 0.1, unread=True),
    Key('tie_word_embeddings', 'model.tied', True),
  ),
  fixed={
    'model.positions': 'learned',
    'model.bias': True,
    'model.embedding_scale': 'one',
    'ffn.bias': True,
  },
  must={
    'scale_attn_weights': True,
    'scale_attn_by_inverse_layer_idx': False,
    'reorder_and_upcast_attn': False,
  },
  harmless=(
    *('attn_pdrop', 'n_ctx', 'summary_activation', 'summary_first_dropout'),
    *('summary_proj_to_labels', 'summary_type', 'summary_use_proj'),
  ),
  tensors=(
    *table('transformer.wte.weight', 'embed/table'),
    *table('transformer.wpe.weight', 'positions/table', 'TD'),
    *norm(_GPT2 + 'ln_1', 'layers/attention_norm'),
    Tensor(_GPT2 + 'attn.c_attn.weight', _heads('D')),
    Tensor(_GPT2 + 'attn.c_attn.bias', _heads('')),
    *table(_GPT2 + 'attn.c_proj.weight', 'layers/attention/out', '(NW)D'),
    *table(_GPT2 + 'attn.c_proj.bias', 'layers/attention/out_bias', 'D'),
    *norm(_GPT2 + 'ln_2', 'layers/ffn_norm'),
    *table(_GPT2 + 'mlp.c_fc.weight', 'layers/ffn/up', 'DF'),
    *table(_GPT2 + 'mlp.c_fc.bias', 'layers/ffn/up_bias', 'F'),
    *table(_GPT2 + 'mlp.c_proj.weight', 'layers/ffn/down', 'FD'),
    *table(_GPT2 + 'mlp.c_proj.bias', 'layers/ffn/down_bias', 'D'),
    *norm('transformer.ln_f', 'final_norm'),
    *table('lm_head.weight', 'unembed/table'),
  ),
  copies=(*table('lm_head.weight', 'embed/table', only=TIED),),
  unused=(r'transformer\.h\.\d+\.attn\.(masked_)?bias',),  # the causal mask, in older files
  old_names=((r'(h\.|wte|wpe|ln_f)', r'transformer.\1'),),
)

# --- Llama (Touvron et al. 2023), Mistral (Jiang et al. 2023) and Mixtral (Jiang et al. 2024).

_LLAMA = 'model.layers.{}.'


def _llama_keys(epsilon: float = 1e-6, base: float = 10000.0) -> tuple[Key, ...]:
  return (
    Key('vocab_size', 'model.vocab_size', 32000),
    Key('hidden_size', 'model.d_model', 4096),
    Key('num_hidden_layers', 'model.num_layers', 32),
    Key('num_attention_heads', 'model.num_heads', 32),
    null_is_0('head_dim', 'model.head_dim'),
    one_of('hidden_act', 'ffn.activation', 'silu', GATED),
    argument('rms_norm_eps', 'model.norm', 'rmsnorm', 'epsilon', epsilon),
    argument('rope_theta', 'model.positions', 'rotary', 'base', base),
    Key('tie_word_embeddings', 'model.tied', False),
  )


def _llama_rest(*ffn: Tensor) -> dict[str, Any]:
  tensors = (
    *table('model.embed_tokens.weight', 'embed/table'),
    *norm(_LLAMA + 'input_layernorm', 'layers/attention_norm'),
    *attention(_LLAMA + 'self_attn.', 'layers/attention', 'q_proj', 'k_proj', 'v_proj', 'o_proj'),
    *norm(_LLAMA + 'post_attention_layernorm', 'layers/ffn_norm'),
    *ffn,
    *norm('model.norm', 'final_norm'),
    *table('lm_head.weight', 'unembed/table'),
  )
  return dict(
    tensors=tensors,
    copies=(*table('lm_head.weight', 'embed/table', only=TIED),),
    unused=(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq',),  # in older files
  )


_DENSE = (
  *dense(_LLAMA + 'mlp.gate_proj', 'layers/ffn/gate', 'FD'),
  *dense(_LLAMA + 'mlp.up_proj', 'layers/ffn/up', 'FD'),
  *dense(_LLAMA + 'mlp.down_proj', 'layers/ffn/down', 'DF'),
)
LLAMA = Family(
  'llama',
  'LlamaForCausalLM',
  keys=(
    *_llama_keys(),
    Key('intermediate_size', 'ffn.d_ff', 11008),
    null_is_0('num_key_value_heads', 'model.num_kv_heads', fill='model.num_heads'),
    Key('max_position_embeddings', 'data.seq_len', 2048),
    Key('attention_bias', 'model.bias', False),
    Key('mlp_bias', 'ffn.bias', False),
  ),
  fixed={'model.embedding_scale': 'one'},
  must={'rope_interleaved': False},
  harmless=(*('attention_dropout', 'is_llama_config', 'pretraining_tp', 'transformers.js_config'),),
  heads_divide=True,
  **_llama_rest(*_DENSE),
)
_MISTRAL_KEYS = (
  Key('intermediate_size', 'ffn.d_ff', 14336),
  null_is_0('num_key_value_heads', 'model.num_kv_heads', 8, fill='model.num_heads'),
  Key('max_position_embeddings', 'data.seq_len', 131072),
)
MISTRAL = Family(
  'mistral',
  'MistralForCausalLM',
  keys=(
    *_llama_keys(),
    *_MISTRAL_KEYS,
    null_is_0('sliding_window', 'model.attention_window', 4096),
  ),
  fixed={'model.embedding_scale': 'one'},
  harmless=('attention_dropout',),
  **_llama_rest(*_DENSE),
)


def _experts(value: Any, _: dict) -> Any:
  if value == 0:
    raise ValueError('should be above 0')
  return value


def _top_k(_: Any, tree: dict) -> str:
  """The router, of the two keys that tell it: a softmax over the chosen."""
  k, jitter = tree['num_experts_per_tok'], tree['router_jitter_noise']
  if k == 1:
    raise ValueError('its one weight is always 1, so the router is never trained; 2 or more run')
  return f'topk(k={k!r}, jitter={jitter!r})'


def _chosen(_: str, config: Config) -> int:
  router = routing.router(config)
  return router.k if router.variant == 'topk' and router.renormalise else 2


_EXPERT = _LLAMA + 'block_sparse_moe.experts.{}.'
MIXTRAL = Family(
  'mixtral',
  'MixtralForCausalLM',
  keys=(
    *_llama_keys(epsilon=1e-5, base=1e6),
    *_MISTRAL_KEYS,
    null_is_0('sliding_window', 'model.attention_window'),
    Key('num_local_experts', 'moe.experts', 8, read=_experts),
    Key('num_experts_per_tok', 'moe.router', 2, read=_top_k, write=_chosen),
    Key(
      *('router_jitter_noise', 'moe.router', 0.0),
      read=_top_k,
      write=lambda _, config: getattr(routing.router(config), 'jitter', 0.0),
    ),
  ),
  fixed={'model.embedding_scale': 'one'},
  # Its balance loss is one of all layers and rows together: see hf.load.
  harmless=('attention_dropout', 'output_router_logits', 'router_aux_loss_coef'),
  **_llama_rest(
    *table(_LLAMA + 'block_sparse_moe.gate.weight', 'layers/ffn/router', 'ED'),
    *table(_EXPERT + 'w1.weight', 'layers/ffn/experts/gate', 'FD'),
    *table(_EXPERT + 'w3.weight', 'layers/ffn/experts/up', 'FD'),
    *table(_EXPERT + 'w2.weight', 'layers/ffn/experts/down', 'DF'),
  ),
)

# --- BERT (Devlin et al. 2019), as BertForMaskedLM.

_BERT, _HEAD = 'bert.encoder.layer.{}.', 'cls.predictions.'
BERT = Family(
  'bert',
  'BertForMaskedLM',
  keys=(
    Key('vocab_size', 'model.vocab_size', 30522),
    Key('max_position_embeddings', 'data.seq_len', 512),
    Key('hidden_size', 'model.d_model', 768),
    Key('num_hidden_layers', 'model.num_layers', 12),
    Key('num_attention_heads', 'model.num_heads', 12),
    Key('intermediate_size', 'ffn.d_ff', 3072),
    Key('type_vocab_size', 'model.token_types', 2),
    one_of('hidden_act', 'ffn.activation', 'gelu', PLAIN),
    argument('layer_norm_eps', 'model.norm', 'layernorm', 'epsilon', 1e-12),
    Key('hidden_dropout_prob', 'model.dropout', 0.1),
    Key('tie_word_embeddings', 'model.tied', True),
  ),
  fixed={
    'model.architecture': 'encoder',
    'model.positions': 'learned',
    'model.norm_placement': 'post',
    'model.embedding_norm': True,
    'model.embedding_scale': 'one',
    'model.head': 'transform',
    'model.bias': True,
    'model.logits_bias': True,
    'ffn.bias': True,
  },
  must={'position_embedding_type': 'absolute'},
  harmless=(
    *('attention_probs_dropout_prob', 'classifier_dropout', 'pooler_fc_size', 'directionality'),
    *('pooler_num_attention_heads', 'pooler_num_fc_layers', 'pooler_size_per_head', 'pooler_type'),
  ),
  tensors=(
    *table('bert.embeddings.word_embeddings.weight', 'embed/table'),
    *table('bert.embeddings.position_embeddings.weight', 'positions/table', 'TD'),
    *table('bert.embeddings.token_type_embeddings.weight', 'types/table', 'AD'),
    *norm('bert.embeddings.LayerNorm', 'embed_norm'),
    *attention(
      *(_BERT + 'attention.', 'layers/attention', 'self.query', 'self.key', 'self.value'),
      'output.dense',
    ),
    *norm(_BERT + 'attention.output.LayerNorm', 'layers/attention_norm'),
    *dense(_BERT + 'intermediate.dense', 'layers/ffn/up', 'FD'),
    *dense(_BERT + 'output.dense', 'layers/ffn/down', 'DF'),
    *norm(_BERT + 'output.LayerNorm', 'layers/ffn_norm'),
    *table(_HEAD + 'transform.dense.weight', 'head/transform', 'OD'),
    *table(_HEAD + 'transform.dense.bias', 'head/transform_bias', 'D'),
    *norm(_HEAD + 'transform.LayerNorm', 'head_norm'),
    *table(_HEAD + 'bias', 'unembed/bias', 'V', TIED),
    *table(_HEAD + 'decoder.bias', 'unembed/bias', 'V', UNTIED),
    *table(_HEAD + 'decoder.weight', 'unembed/table'),
  ),
  copies=(
    *table(_HEAD + 'decoder.weight', 'embed/table', only=TIED),
    *table(_HEAD + 'decoder.bias', 'unembed/bias', 'V', TIED),
    *table(_HEAD + 'bias', 'unembed/bias', 'V', UNTIED, written=True, idle=True),
  ),
  unused=(r'bert\.pooler\.dense\.\w+', r'cls\.seq_relationship\.\w+', r'bert\.\w+\.position_ids'),
  old_names=((r'(.*LayerNorm\.)gamma', r'\1weight'), (r'(.*LayerNorm\.)beta', r'\1bias')),
)

# --- Marian (Junczys-Dowmunt et al. 2018): the Transformer of 2017, its norms after the sums.

_ENCODER, _DECODER = 'model.encoder.layers.{}.', 'model.decoder.layers.{}.'
_SOURCE, _TARGET = 'model.encoder.embed_tokens.weight', 'model.decoder.embed_tokens.weight'
_PROJECTIONS = ('q_proj', 'k_proj', 'v_proj', 'out_proj')


def _encoder_ratio(width: Any, tree: dict) -> str:
  """ffn.encoder_ratios of a width; as the decoder's where it is the same."""
  if width == tree['decoder_ffn_dim']:
    return ''
  return repr(width / tree['d_model'])


def _stack(theirs: str, ours: str) -> list[Tensor]:
  return [
    *attention(theirs + 'self_attn.', f'{ours}/attention', *_PROJECTIONS),
    *norm(theirs + 'self_attn_layer_norm', f'{ours}/attention_norm'),
    *dense(theirs + 'fc1', f'{ours}/ffn/up', 'FD'),
    *dense(theirs + 'fc2', f'{ours}/ffn/down', 'DF'),
    *norm(theirs + 'final_layer_norm', f'{ours}/ffn_norm'),
  ]


MARIAN = Family(
  'marian',
  'MarianMTModel',
  keys=(
    Key('vocab_size', 'model.vocab_size', 58101),
    Key(
      *('decoder_vocab_size', 'model.vocab_size', None),
      read=lambda value, tree: value or tree['vocab_size'],
    ),
    Key(
      *('max_position_embeddings', 'data.seq_len', 1024),
      write=lambda value, config: max(value, config.data.source_len),
    ),
    Key('d_model', 'model.d_model', 1024),
    Key('decoder_layers', 'model.num_layers', 12),
    null_is_0('encoder_layers', 'model.num_encoder_layers', 12, fill='model.num_layers'),
    Key('decoder_attention_heads', 'model.num_heads', 16),
    Key('encoder_attention_heads', 'model.num_heads', 16),
    Key('decoder_ffn_dim', 'ffn.d_ff', 4096),
    Key(
      *('encoder_ffn_dim', 'ffn.encoder_ratios', 4096),
      read=_encoder_ratio,
      write=lambda _, config: widths(config, encoder=True)[0],
    ),
    one_of('activation_function', 'ffn.activation', 'gelu', PLAIN),
    Key('dropout', 'model.dropout', 0.1),
    Key('activation_dropout', 'ffn.dropout', 0.0),
    Key('share_encoder_decoder_embeddings', 'model.shared_source', True),
    Key('tie_word_embeddings', 'model.tied', True),
    one_of(
      *('scale_embedding', 'model.embedding_scale', False), {True: 'sqrt_d_model', False: 'one'}
    ),
  ),
  fixed={
    'model.architecture': 'encoder_decoder',
    'model.positions': 'sinusoidal',
    'model.norm': 'layernorm(epsilon=1e-05)',
    'model.norm_placement': 'post',
    'model.bias': True,
    'model.logits_bias': True,
    'ffn.bias': True,
  },
  must={
    'is_encoder_decoder': True,
    'static_position_embeddings': True,
    'normalize_before': False,
    'normalize_embedding': False,
    'add_bias_logits': False,
    'add_final_layer_norm': False,
  },
  harmless=(
    *('attention_dropout', 'classif_dropout', 'classifier_dropout', 'decoder_layerdrop'),
    *('encoder_layerdrop', 'extra_pos_embeddings', 'force_bos_token_to_be_generated', 'init_std'),
    'num_hidden_layers',  # encoder_layers again
  ),
  tensors=(
    *table('model.shared.weight', 'embed/table', 'VD', SHARED),
    *table(_TARGET, 'embed/table', 'VD', UNSHARED),
    *table(_SOURCE, 'source_embed/table'),
    *_stack(_ENCODER, 'encoder_layers'),
    *_stack(_DECODER, 'layers'),
    *attention(_DECODER + 'encoder_attn.', 'layers/cross_attention', *_PROJECTIONS),
    *norm(_DECODER + 'encoder_attn_layer_norm', 'layers/cross_attention_norm'),
    *table('final_logits_bias', 'unembed/bias', '1V'),
    *table('lm_head.weight', 'unembed/table'),
  ),
  copies=(
    *table(_SOURCE, 'embed/table', only=SHARED + TIED),
    *table(_TARGET, 'embed/table', only=SHARED + TIED),
    *table(_SOURCE, 'embed/table', only=SHARED + UNTIED, written=True),
    *table(_TARGET, 'embed/table', only=SHARED + UNTIED, written=True),
    *table('lm_head.weight', 'embed/table', only=TIED),
  ),
  sinusoids=('model.encoder.embed_positions.weight', 'model.decoder.embed_positions.weight'),
)

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, MISTRAL, MIXTRAL, BERT, MARIAN)}
