"""Greedy generation beside Hugging Face's, on the same random weights in the published small size, in one process.

    python benchmarks/generation.py                    a table
    python benchmarks/generation.py --json out.json    every number

64 tokens after a prompt of 15, with a KV cache, in float32 and in bfloat16; the tokens are compared first. Measured as
measuring.py says. On a busy machine --cpu-time counts what one thread computes instead of what the clock says; the targets
are for the clock and two free cores. Reading its weights is most of what a token costs: 0.5 GB in float32.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, thread_time

import torch
from instrument import SMALL, TINY
from measuring import HF, OURS, Row, circumstances, measure

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface

PROMPT, NEW = 15, 64
TARGETS = {torch.float32: 1500, torch.bfloat16: 700}  # milliseconds


def row_of(config: GPT2Config, dtype: torch.dtype) -> Row:
    model = GPT2(config).eval().to(dtype)
    hf_model = to_huggingface(model)
    prompt = torch.randint(config.d_vocab, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)

    def ours() -> torch.Tensor:
        return model.generate(prompt, NEW, temperature=0)

    def theirs() -> torch.Tensor:
        return hf_model.generate(
            prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    if dtype == torch.float32 and not torch.equal(ours(), theirs()):
        raise SystemExit("the tokens differ from Hugging Face's")
    return Row(f"{NEW} greedy tokens, {str(dtype).removeprefix('torch.')}", {OURS: ours, HF: theirs}, TARGETS[dtype])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread, not the time on the clock")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers: only to see that everything runs")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = thread_time if options.cpu_time else perf_counter
    facts, results = circumstances(options.cpu_time), []
    print(f"{facts['machine']}, torch {facts['torch']}, transformers {facts['transformers']}\n")
    print(f"| work | {OURS}, ms | {HF}, ms | ours divided by theirs | target |\n|---|---|---|---|---|")
    with torch.no_grad():
        for dtype in TARGETS:
            result = measure(row_of(TINY if options.tiny else SMALL, dtype), options.rounds, clock)
            results.append(result)
            ours, theirs = result.milliseconds[OURS], result.milliseconds[HF]
            print(f"| {result.row} | {ours:.0f} | {theirs:.0f} | {result.ratio[HF]:.2f} | {result.target} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": [asdict(result) for result in results]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
