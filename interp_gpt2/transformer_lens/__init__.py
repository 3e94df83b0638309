"""A home for code written for TransformerLens's HookedTransformer: change the import, and GPT-2 code runs on our model.

    from interp_gpt2.transformer_lens import HookedTransformer, HookedTransformerConfig, ActivationCache, utils, patching

Names, arguments and results are TransformerLens's 3.9; what cannot be done here is refused by name. Only this face
prepends a BOS by default, keeps hooks on an object, and tells hooks TransformerLens's spelling (`hook.name`).
"""

from interp_gpt2.factored import FactoredMatrix as FactoredMatrix
from interp_gpt2.transformer_lens import head_detector as head_detector
from interp_gpt2.transformer_lens import patching as patching
from interp_gpt2.transformer_lens import utils as utils
from interp_gpt2.transformer_lens.activation_cache import ActivationCache as ActivationCache
from interp_gpt2.transformer_lens.config import HookedTransformerConfig as HookedTransformerConfig
from interp_gpt2.transformer_lens.hook_points import HookPoint as HookPoint
from interp_gpt2.transformer_lens.hooked_transformer import HookedTransformer as HookedTransformer
from interp_gpt2.transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache as HookedTransformerKeyValueCache

TransformerLensKeyValueCache = HookedTransformerKeyValueCache  # its name since TransformerLens 3
