"""A home for code written for TransformerLens's HookedTransformer: change the import, and GPT-2 code runs on our model.

    from interp_gpt2.transformer_lens import HookedTransformer, HookedTransformerConfig, ActivationCache, utils, patching

Names, arguments and results are TransformerLens's 3.9. Only this face prepends a BOS by default, keeps hooks on an object,
and tells hooks TransformerLens's spelling (`hook.name`). TransformerLens's own functions (3.9's and 4.3's `patching`,
`head_detector`, `tools.analysis.direct_logit_attribution` and `logit_lens`, `ActivationCache`) take a HookedTransformer
from here as one of theirs. Where it lives: `model.model` is our GPT2, whose weights every view of them shares.

What cannot be done here is refused by name. Functions and methods that are not here say what to use instead: `refused` has
them all. Arguments, with the one value they have:

    from_pretrained  n_devices, n_ctx, first_n_layers, checkpoint_label
    a call           shortformer_pos_embed, past_kv_cache with start_at_layer, past_kv_cache with stop_at_layer,
                     past_kv_cache of another library
    run_with_hooks   bwd_hooks with reset_hooks_end
    run_with_cache   reset_hooks_end
    generate         freq_penalty, use_past_kv_cache, top_k with top_p, embeddings
    load_state_dict  strict, assign

Fields of a config that is not a GPT-2's are refused by the field. An edit that returns another shape, a pattern with mass
on the future, and a name of no hook point are errors, where TransformerLens would go on.
"""

from typing import NoReturn

from interp_gpt2.factored import FactoredMatrix as FactoredMatrix
from interp_gpt2.transformer_lens import head_detector as head_detector
from interp_gpt2.transformer_lens import patching as patching
from interp_gpt2.transformer_lens import refused as refused
from interp_gpt2.transformer_lens import utils as utils
from interp_gpt2.transformer_lens.activation_cache import ActivationCache as ActivationCache
from interp_gpt2.transformer_lens.config import HookedTransformerConfig as HookedTransformerConfig
from interp_gpt2.transformer_lens.hook_points import HookPoint as HookPoint
from interp_gpt2.transformer_lens.hooked_transformer import HookedTransformer as HookedTransformer
from interp_gpt2.transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache as HookedTransformerKeyValueCache

utilities = utils  # their names since TransformerLens 3
TransformerLensKeyValueCache = HookedTransformerKeyValueCache


def __getattr__(name: str) -> NoReturn:
    if name in refused.PACKAGE:
        raise AttributeError(refused.refusal(__name__, name, refused.PACKAGE))
    raise AttributeError(f"{__name__} has no {name!r}")
