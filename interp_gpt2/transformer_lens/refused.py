"""What TransformerLens has under these names and the drop-in has not, and what to use instead."""

from collections.abc import Mapping

_NOT_GPT2 = "TransformerLens: only GPT-2s have a face here"
_GPT2_INITIALISED = "GPT2(config, seed=), initialised as GPT-2 is"
_HF_DATASET = "datasets.load_dataset, and model.to_tokens on its texts"

PACKAGE = {
    "HookedEncoder": _NOT_GPT2,
    "HookedEncoderDecoder": _NOT_GPT2,
    "HookedAudioEncoder": _NOT_GPT2,
    "BertNextSentencePrediction": _NOT_GPT2,
    "HookedRootModule": "interp_gpt2.GPT2: hooks on other modules are torch's register_forward_hook",
    "TransformerBridgeConfig": "interp_gpt2.convert.transformer_lens.to_transformer_bridge(model), which has one",
    "TransformerLensKeyValueCacheEntry": "HookedTransformerKeyValueCache, whose entries need no making",
    "SVDInterpreter": "model.OV[layer, head].svd(), and model.W_U",
    "model_bridge": "interp_gpt2.convert.transformer_lens.to_transformer_bridge(model)",
    "weight_processing": "interp_gpt2.folding",
    "loading_from_pretrained": "HookedTransformer.from_pretrained",
    "pretrained": "HookedTransformer.from_pretrained",
    "supported_models": "the four sizes of GPT-2, DistilGPT-2, Stanford's, and any GPT-2 in a directory or a run",
    "train": "interp_gpt2.training",
    "evals": "interp_gpt2.analysis.loss",
    "tools": "transformer_lens's own, which run on this model, or interp_gpt2.analysis",
    "components": "model.blocks[layer].attn and its kin",
    "factories": "interp_gpt2.model",
    "cache": "HookedTransformerKeyValueCache",
    "conversion_utils": "interp_gpt2.convert",
    "lit": _NOT_GPT2,
}

METHODS = {  # of HookedTransformer
    "generate_stream": "interp_gpt2.generation.stream(model.model, tokens, max_new_tokens)",
    "sample_datapoint": _HF_DATASET,
    "load_sample_training_dataset": _HF_DATASET,
    "add_caching_hooks": "get_caching_hooks, or run_with_cache",
    "cache_all": "get_caching_hooks, or run_with_cache",
    "cache_some": "get_caching_hooks, or run_with_cache(names_filter=)",
    "list_hooks": "model.hook_dict[name].fwd_hooks",
    "check_hooks_to_add": "add_hook, which refuses a name that is none",
    "check_and_add_hook": "add_hook",
    "setup": "nothing: hook points have their names from the start",
    "input_to_embed": "model.to_tokens, and model(tokens, stop_at_layer=0)",
    "get_residual": "model(tokens, stop_at_layer=0)",
    "get_pos_offset": "past_kv_cache.past.n_pos",
    "init_weights": _GPT2_INITIALISED,
    "fill_missing_keys": "a whole state_dict: a tensor that is missing is refused by name",
    "fold_layer_norm": "process_weights_, or interp_gpt2.folding.fold_layer_norm(model.model)",
    "fold_value_biases": "process_weights_, or interp_gpt2.folding.fold_value_biases(model.model)",
    "center_writing_weights": "process_weights_, or interp_gpt2.folding.center_writing_weights(model.model)",
    "center_unembed": "process_weights_, or interp_gpt2.folding.center_unembed(model.model)",
    "refactor_factored_attn_matrices": "process_weights_, or interp_gpt2.folding.refactor_factored_attn_matrices(model.model)",
    "set_ungroup_grouped_query_attention": "nothing: a GPT-2's heads share no keys",
    "W_gate": "W_in: a GPT-2's MLP has no gate",
    "move_model_modules_to_device": "to(device)",
    "mps": "to('mps')",
    "n_params_total": "model.model.config.n_params",
}

UTILS = {
    "get_dataset": "datasets.load_dataset, which says what it downloads",
    "download_file_from_hf": "huggingface_hub.hf_hub_download",
    "clear_huggingface_cache": "the command `hf cache`",
    "print_gpu_mem": "torch.cuda.memory_allocated()",
    "sample_logits": "interp_gpt2.generation.sample",
    "composition_scores": "model.all_composition_scores, or interp_gpt2.analysis.circuits",
    "get_tokenizer_with_bos": "prepend_bos=True where text is passed, or get_input_with_manually_prepended_bos",
    "get_nested_attr": "operator.attrgetter(path)(model)",
    "set_nested_attr": "setattr on what operator.attrgetter(path)(model) finds",
    "filter_dict_by_prefix": "a dict comprehension",
    "get_cumsum_along_dim": "torch.cumsum",
    "repeat_along_head_dimension": "tensor.unsqueeze(-2).expand",
    "get_offset_position_ids": "attention_mask=, from which the model counts positions",
    "check_structure": "torch.testing.assert_close",
    "is_library_available": "importlib.util.find_spec",
    "solu": "a model of GPT-2's activations: gelu_new, gelu or relu",
    "override_or_use_default_value": "the argument itself: None stands for the model's setting",
    "LocallyOverridenDefaults": "the arguments prepend_bos= and padding_side= of each call",
    "warn_if_mps": "nothing: no model is moved to MPS by itself",
    "calc_fan_in_and_fan_out": _GPT2_INITIALISED,
    "init_xavier_uniform_": _GPT2_INITIALISED,
    "init_xavier_normal_": _GPT2_INITIALISED,
    "init_kaiming_uniform_": _GPT2_INITIALISED,
    "init_kaiming_normal_": _GPT2_INITIALISED,
}


def refusal(where: str, name: str, instead: Mapping[str, str]) -> str:
    return f"{where} has no {name!r}; use {instead[name]}"
