"""Pictures of results: interactive views for notebooks, files and reports, and figures for papers.

`attention_view`, `circuit_view`, `lens_view`, `neuron_view`, `patching_view`, `sampling_view` and `tracing_view` return a
`View`, which shows itself in a notebook (as a page that needs nothing but itself, or as a still picture where pages cannot be
shown), has its numbers as a table in `.data`, and writes itself with `.save("x.html")`, `.png`, `.pdf`, `.svg` or `.csv`.
`views.figures`, `views.patching_figures` and `views.causal_figures` draw for papers with matplotlib.
"""

from interp_gpt2.views.attention import AttentionData, attention_view, pack_attention
from interp_gpt2.views.circuit import CircuitData, circuit_svg, circuit_view, pack_circuit
from interp_gpt2.views.lens import LensData, lens_view, pack_lens
from interp_gpt2.views.neurons import neuron_view, save_neuron_pages
from interp_gpt2.views.patching import PatchingData, pack_patching, patching_view
from interp_gpt2.views.sampling import SamplingData, pack_sampling, sampling_view
from interp_gpt2.views.tracing import tracing_view
from interp_gpt2.views.view import View

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
    "tracing_view",
]
