"""Small models of the original implementations, and what they make of some tokens.

Run by hand, in an environment with torch and transformers, which the tests do not have:

  python tests/interop/make_goldens.py tests/interop/golden

Writes a folder a model: config.json and model.safetensors as save_pretrained leaves them, and
golden.npz: ids_BT (for Marian also source_BS), mask (1 at tokens, 0 at padding), types_BT of BERT,
logits_BTV, and of Mixtral balance, that loss of the first row. Sizes are odd on purpose, and every
tensor is drawn anew, biases and norms too. golden/versions.json says what made them.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf

LENGTH, SOURCE = 9, 7
GPT2 = dict(vocab_size=61, n_positions=12, n_embd=18, n_head=3, n_layer=2)
LLAMA = dict(vocab_size=53, hidden_size=12, num_attention_heads=4, intermediate_size=20)
BERT = dict(vocab_size=71, hidden_size=12, num_attention_heads=3, intermediate_size=20)
MARIAN = dict(
  **dict(vocab_size=59, d_model=16, encoder_ffn_dim=20, decoder_ffn_dim=28, encoder_layers=3),
  **dict(decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4),
  **dict(pad_token_id=58, decoder_start_token_id=58, max_position_embeddings=16),
)
APART = dict(share_encoder_decoder_embeddings=False)
MODELS = {
  'gpt2': hf.GPT2Config(**GPT2, n_inner=40),
  'gpt2_untied': hf.GPT2Config(
    **GPT2, activation_function='relu', layer_norm_epsilon=1e-3, tie_word_embeddings=False
  ),
  'llama': hf.LlamaConfig(
    **LLAMA, num_hidden_layers=2, num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-4,
    attention_bias=True, mlp_bias=True, rope_parameters=dict(rope_type='default', rope_theta=500.0)
  ),
  'llama_tied': hf.LlamaConfig(
    **LLAMA, num_hidden_layers=3, hidden_act='gelu', head_dim=2, tie_word_embeddings=True
  ),
  'mistral': hf.MistralConfig(
    **LLAMA | dict(hidden_size=15, num_attention_heads=3), num_hidden_layers=2,
    num_key_value_heads=1, head_dim=10, sliding_window=3, max_position_embeddings=64,
  ),
  'mistral_open': hf.MistralConfig(
    **LLAMA | dict(hidden_size=14), num_hidden_layers=2, num_key_value_heads=2, head_dim=4,
    sliding_window=None, hidden_act='gelu_pytorch_tanh', tie_word_embeddings=True
  ),
  'mixtral': hf.MixtralConfig(
    **LLAMA | dict(hidden_size=15, num_attention_heads=4), num_hidden_layers=2, head_dim=6,
    num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.1,
  ),
  'mixtral_tied': hf.MixtralConfig(
    **LLAMA | dict(intermediate_size=10), num_hidden_layers=1, head_dim=2, num_key_value_heads=1,
    num_local_experts=6, num_experts_per_tok=3, sliding_window=4, hidden_act='gelu',
    rms_norm_eps=1e-4, tie_word_embeddings=True, max_position_embeddings=64,
    rope_parameters=dict(rope_type='default', rope_theta=500.0)
  ),
  'bert': hf.BertConfig(
    **BERT, num_hidden_layers=2, type_vocab_size=3, max_position_embeddings=16
  ),
  'bert_untied': hf.BertConfig(
    **BERT, num_hidden_layers=1, hidden_act='relu', max_position_embeddings=11,
    tie_word_embeddings=False, layer_norm_eps=1e-3
  ),
  'marian': hf.MarianConfig(**MARIAN, activation_function='swish', scale_embedding=True),
  'marian_apart': hf.MarianConfig(**MARIAN, **APART, activation_function='gelu'),
  'marian_untied': hf.MarianConfig(
    **MARIAN | dict(encoder_layers=2, encoder_ffn_dim=28), **APART, tie_word_embeddings=False,
    activation_function='relu'
  ),
}  # fmt: skip
CLASSES = {
  'bert': hf.BertForMaskedLM,
  'gpt2': hf.GPT2LMHeadModel,
  'llama': hf.LlamaForCausalLM,
  'marian': hf.MarianMTModel,
  'mistral': hf.MistralForCausalLM,
  'mixtral': hf.MixtralForCausalLM,
}


def draw(model: torch.nn.Module) -> None:
  """Every tensor anew: norms around 1, the rest around 0; the fixed positions stay."""
  with torch.no_grad():
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
      if 'embed_positions' in name or not x.is_floating_point() or 'inv_freq' in name:
        continue
      norm = x.ndim == 1 and ('norm' in name.lower() or '.ln_' in name) and 'bias' not in name
      x.copy_(norm + 0.3 * torch.randn(x.shape))


def mask(length: int, left: bool) -> torch.Tensor:
  """Three rows: whole, padded on the right, padded on the left (or more on the right)."""
  out = torch.ones(3, length, dtype=torch.long)
  out[1, length - 2 :] = 0
  out[2, : length - 5] = 0
  return out if left else torch.cat([out[:2], out[2:].flip(1)])


def run(model: torch.nn.Module, vocab: int) -> dict[str, torch.Tensor]:
  """What goes in, and the logits."""
  given = {'ids_BT': torch.randint(0, vocab, (3, LENGTH))}
  if model.config.is_encoder_decoder:  # its positions count from the first column whatever is there
    given |= {'source_BS': torch.randint(0, vocab, (3, SOURCE)), 'mask': mask(SOURCE, left=False)}
    told = dict(decoder_input_ids=given['ids_BT'], input_ids=given['source_BS'])
  else:
    given['mask'] = mask(LENGTH, left=True)
    told = dict(input_ids=given['ids_BT'])
    told['position_ids'] = (given['mask'].cumsum(1) - 1).clamp(min=0)
  if model.config.model_type == 'bert':
    given['types_BT'] = torch.randint(0, model.config.type_vocab_size, (3, LENGTH))
    told['token_type_ids'] = given['types_BT']
  with torch.no_grad():
    given['logits_BTV'] = model(attention_mask=given['mask'], **told).logits
    if model.config.model_type == 'mixtral':
      told = {key: x[:1] for key, x in told.items()}
      given['balance'] = model(output_router_logits=True, **told).aux_loss
  return given


def main(folder: Path) -> None:
  for name, config in MODELS.items():
    torch.manual_seed(0)
    config._attn_implementation = config._experts_implementation = 'eager'
    model = CLASSES[config.model_type](config).eval()
    draw(model)
    shutil.rmtree(folder / name, ignore_errors=True)
    model.save_pretrained(folder / name)
    (folder / name / 'generation_config.json').unlink(missing_ok=True)
    given = {key: value.numpy() for key, value in run(model, config.vocab_size).items()}
    small = {key: x if x.dtype == np.float32 else x.astype(np.int8) for key, x in given.items()}
    np.savez_compressed(folder / name / 'golden.npz', **small)
  made = {'torch': torch.__version__, 'transformers': hf.__version__}
  (folder / 'versions.json').write_text(json.dumps(made, indent=2) + '\n')


if __name__ == '__main__':
  main(Path(sys.argv[1]))
