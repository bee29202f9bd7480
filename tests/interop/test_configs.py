"""config.json of models in wide use: every key is known, and there are as many parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transformer import count
from transformer.config import PRESETS, Config, resolve
from transformer.interop import configs

GPT2 = """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
  "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
  "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
  "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
  "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
  "summary_type": "cls_index", "summary_use_proj": true,
  "task_specific_params": {"text-generation": {"max_length": 50}}, "vocab_size": 50257}"""
LLAMA_2_7B = """{"_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"],
  "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
  "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0",
  "use_cache": true, "vocab_size": 32000}"""
MISTRAL_7B = """{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}"""
MIXTRAL_8X7B = """{"architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0,
  "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
  "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
  "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
  "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
  "output_router_logits": false, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
  "router_aux_loss_coef": 0.02, "sliding_window": null, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": true,
  "vocab_size": 32000}"""
BERT = """{"architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
  "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
  "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
  "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
  "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
  "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0",
  "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522}"""
OPUS_MT = """{"_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish",
  "add_bias_logits": false, "add_final_layer_norm": false, "architectures": ["MarianMTModel"],
  "attention_dropout": 0.0, "bad_words_ids": [[58100]], "bos_token_id": 0, "classif_dropout": 0.0,
  "d_model": 512, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0,
  "decoder_layers": 6, "decoder_start_token_id": 58100, "decoder_vocab_size": 58101,
  "dropout": 0.1, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0,
  "encoder_layers": 6, "eos_token_id": 0, "forced_eos_token_id": 0,
  "id2label": {"0": "LABEL_0"}, "init_std": 0.02, "is_encoder_decoder": true,
  "label2id": {"LABEL_0": 0}, "max_length": 512, "max_position_embeddings": 512,
  "model_type": "marian", "normalize_before": false, "normalize_embedding": false, "num_beams": 6,
  "num_hidden_layers": 6, "pad_token_id": 58100, "scale_embedding": true,
  "share_encoder_decoder_embeddings": true, "static_position_embeddings": true,
  "transformers_version": "4.22.0.dev0", "use_cache": true, "vocab_size": 58101}"""
MODELS = {  # their own counts; of opus-mt without the fixed positions, with the bias of the logits
  'gpt2': (GPT2, 124_439_808),
  'llama-2-7b': (LLAMA_2_7B, 6_738_415_616),
  'mistral-7b': (MISTRAL_7B, 7_241_732_096),
  'mixtral-8x7b': (MIXTRAL_8X7B, 46_702_792_704),
  'bert-base-uncased': (BERT, 109_514_298),
  'opus-mt-en-de': (OPUS_MT, 74_410_496 - 2 * 512 * 512 + 58_101),
}


@pytest.mark.parametrize('name', MODELS)
def test_models_in_wide_use(name: str, tmp_path: Path) -> None:
  text, params = MODELS[name]
  path = tmp_path / 'config.json'
  path.write_text(text)
  family, config = configs.read_config(path)
  assert count.params(config) == params
  written, tree, wider = configs.write_config(config)
  assert (written, wider) == (family, config)
  path.write_text(json.dumps(tree))
  assert configs.read_config(path) == (family, config)


def test_mixtral_is_the_preset_of_its_name(tmp_path: Path) -> None:
  """46.7 and 12.9 billion parameters are those of Jiang et al. 2024, table 1 and section 2."""
  path = tmp_path / 'config.json'
  path.write_text(MIXTRAL_8X7B)
  family, theirs = configs.read_config(path)
  ours = resolve(Config().replace(**PRESETS['mixtral_8x7b']))
  assert configs.write_config(ours)[0] is family
  assert (ours.model, ours.ffn, ours.moe) == (theirs.model, theirs.ffn, theirs.moe)
  found = count.params(ours), count.active_params(ours)
  assert [round(n / 1e9, 1) for n in found] == [46.7, 12.9]
