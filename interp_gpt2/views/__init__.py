"""Pictures of results: interactive views for notebooks, files and reports, and figures for papers.

A view is HTML that needs nothing but itself: `attention_view`, `circuit_view`, `lens_view`, `neuron_view`, `patching_view`
and `sampling_view` show themselves in a notebook, `.save(path)` themselves, and hold their numbers in `.data`. `circuit_svg` is
a file for a paper; `views.figures` and `views.patching_figures` draw with matplotlib.
"""

from interp_gpt2.views.attention import AttentionData, attention_view, pack_attention
from interp_gpt2.views.circuit import CircuitData, circuit_svg, circuit_view, pack_circuit
from interp_gpt2.views.html import View
from interp_gpt2.views.lens import LensData, lens_view, pack_lens
from interp_gpt2.views.neurons import neuron_view, save_neuron_pages
from interp_gpt2.views.patching import PatchingData, pack_patching, patching_view
from interp_gpt2.views.sampling import SamplingData, pack_sampling, sampling_view

__all__ = [
    "AttentionData",
    "CircuitData",
    "LensData",
    "PatchingData",
    "SamplingData",
    "View",
    "attention_view",
    "circuit_svg",
    "circuit_view",
    "lens_view",
    "neuron_view",
    "pack_attention",
    "pack_circuit",
    "pack_lens",
    "pack_patching",
    "pack_sampling",
    "patching_view",
    "sampling_view",
    "save_neuron_pages",
]
