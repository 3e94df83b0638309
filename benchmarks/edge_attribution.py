"""What edge attribution costs: all 32,491 edges of the small GPT-2 (random weights) on one pair of 15 tokens.

    python benchmarks/edge_attribution.py                    a table
    python benchmarks/edge_attribution.py --json out.json    every number

In forward passes: the same model's own, of one prompt of the pair, its logits at every position included. EAP to be at most
3 of them and 2 GB; the other limits are there to notice by when something becomes slower. Beside it EAP-IG, attribution
patching of every head by position, and, where transformer-lens <4 is installed, EAP by its hooks: per-head results and split
inputs recorded, then a product for each layer. measuring.py says how times are taken; peak memory is what tensors took over
what was there before, to the byte.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import torch
from measuring import OURS, OWN_FORWARD, Row, Work, circumstances, measure
from torch import Tensor

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.causal.activation_patching import get_act_patch_attn_head_out_by_pos
from interp_gpt2.causal.edge_attribution import eap, eap_ig_activations, eap_ig_inputs
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.metrics import logit_difference
from interp_gpt2.causal.node_attribution import attribution_patching
from interp_gpt2.memory import peak_memory
from interp_gpt2.prompts.pairs import PromptPairs

METRIC = logit_difference(5, 7)


def pair_of(config: GPT2Config, n_pos: int) -> PromptPairs:
    """Prompts that differ in their first token: nothing is the same in both runs."""
    clean = torch.randint(10, config.d_vocab, (1, n_pos), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[0, 0] = 9
    return PromptPairs(clean, corrupted, torch.tensor([[5]]), torch.tensor([[7]]))


def rows(model: GPT2, pairs: PromptPairs) -> list[Row]:
    forward = {OWN_FORWARD: lambda: model(pairs.clean)}
    work: dict[str, tuple[Work, float]] = {
        "EAP": (lambda: eap(model, pairs, METRIC), 3.0),
        "EAP, a function of whole logits": (lambda: eap(model, pairs, lambda x: x[:, -1, 5] - x[:, -1, 7]), 4.5),
        "EAP-IG (inputs, 5 steps)": (lambda: eap_ig_inputs(model, pairs, METRIC, 5), 12.0),
        "EAP-IG (activations, 5 steps)": (lambda: eap_ig_activations(model, pairs, METRIC, 5), 200.0),
        "attribution patching, z by position": (
            lambda: attribution_patching(model, pairs, get_act_patch_attn_head_out_by_pos, METRIC),
            4.0,
        ),
    }
    found = [
        Row(name, {OURS: ours, **forward}, most, OWN_FORWARD, rounds=3 if "activations" in name else None)
        for name, (ours, most) in work.items()
    ]
    found[0].contenders.update(by_transformer_lens(model, pairs))
    return found


def by_transformer_lens(model: GPT2, pairs: PromptPairs) -> dict[str, Callable[[], Tensor]]:
    """EAP by HookedTransformer's hooks, as its users write it; nothing where that is not installed."""
    try:
        if int(version("transformer-lens").split(".")[0]) >= 4:
            return {}
    except PackageNotFoundError:
        return {}
    from interp_gpt2.convert.transformer_lens import to_hooked_transformer

    hooked, graph = to_hooked_transformer(model), Graph.of(model.config)
    hooked.set_use_attn_result(True)
    hooked.set_use_split_qkv_input(True)
    hooked.set_use_hook_mlp_in(True)
    hooked.requires_grad_(False)
    n_layers = model.config.n_layers
    sending = {"hook_embed", "hook_pos_embed"} | {
        f"blocks.{i}.{p}" for i in range(n_layers) for p in ("attn.hook_result", "hook_mlp_out")
    }
    reading = {f"blocks.{i}.hook_{p}" for i in range(n_layers) for p in ("q_input", "k_input", "v_input", "mlp_in")}
    reading.add(f"blocks.{n_layers - 1}.hook_resid_post")

    def outputs(cache: dict[str, Tensor]) -> Tensor:
        parts = [(cache["hook_embed"] + cache["hook_pos_embed"])[:, :, None]]
        for i in range(n_layers):
            parts += [cache[f"blocks.{i}.attn.hook_result"], cache[f"blocks.{i}.hook_mlp_out"][:, :, None]]
        return torch.cat(parts, 2)

    def run() -> Tensor:
        with torch.enable_grad():
            kept: dict[str, Tensor] = {}
            _, corrupted = hooked.run_with_cache(pairs.corrupted, names_filter=lambda name: name in sending)

            def keep(value: Tensor, hook: Any) -> Tensor:
                value = value if value.requires_grad else value.requires_grad_()
                kept[hook.name] = value
                return value

            METRIC(hooked.run_with_hooks(pairs.clean, fwd_hooks=[(lambda name: name in sending | reading, keep)])).sum().backward(
                inputs=[kept[name] for name in sorted(reading)]
            )
        difference = outputs(corrupted) - outputs(kept).detach()
        scores = difference.new_zeros(len(graph.senders), len(graph.receivers))
        for layer in range(n_layers):
            gradients = torch.cat([kept[f"blocks.{layer}.hook_{x}_input"].grad for x in "qkv"], 2)
            seen = 1 + 13 * layer
            scores[:seen, graph.head_receivers(layer)] = torch.einsum("bpsd,bprd->sr", difference[:, :, :seen], gradients)
            mlp = kept[f"blocks.{layer}.hook_mlp_in"].grad
            scores[: seen + 12, graph.mlp_receiver(layer)] = torch.einsum("bpsd,bpd->s", difference[:, :, : seen + 12], mlp)
        final = kept[f"blocks.{n_layers - 1}.hook_resid_post"].grad
        scores[:, -1] = torch.einsum("bpsd,bpd->s", difference, final)
        for value in kept.values():
            value.grad = None
        return scores

    found, expected = run(), eap(model, pairs, METRIC).values
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max())), "not the same scores"
    return {"TransformerLens": run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread, not the time on the clock")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers: only to see that everything runs")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    model = GPT2(replace(GPT2Config(), n_layers=2, d_model=48, d_vocab=1000) if options.tiny else GPT2Config()).eval()
    pairs = pair_of(model.config, options.tokens)
    found = []
    with torch.no_grad():
        for row in rows(model, pairs):
            result = asdict(measure(row, options.rounds, thread_time if options.cpu_time else perf_counter))
            result["peak_bytes"] = {name: peak_memory(work) for name, work in row.contenders.items()}
            found.append(result)
            costs = ", ".join(
                f"{name} {time:.0f} ms and {result['peak_bytes'][name] / 1e6:.0f} MB"
                for name, time in result["milliseconds"].items()
            )
            print(f"{row.name}: {result['ratio'][OWN_FORWARD]:.2f} forward passes ({result['target']}); {costs}", flush=True)
    if options.json:
        run = {"circumstances": circumstances(options.cpu_time), "tokens": options.tokens, "rows": found}
        options.json.write_text(json.dumps(run, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
