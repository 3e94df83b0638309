"""What it costs to score every neuron as a probe: AUROC of all 36,864 neurons of the small GPT-2 (random weights).

    python benchmarks/probes.py                              100,000 tokens, about 20 minutes on 2 cores
    python benchmarks/probes.py --tokens 4096 --layers 2     a quick look
    python benchmarks/probes.py --json out.json              every number

In forward passes of the same model over the same tokens, its logits included, batch by batch: at most 4, activations
included, with five labels and their control tasks. `exact` holds one layer's activations and sorts each neuron's;
`streamed` counts them into bins as they come. Both read `neuron_layers`, each block once. Also: the most memory that was
resident in each, a process of its own, libraries and model included (limit: 2 GB for exact AUROC of a layer that lies in a
store); how far the two are apart; and the bound that streamed states. Timed once each, in turn: minutes, not milliseconds.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from measuring import circumstances

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.activations.creating import Recording, create_store
from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.activations.texts import Texts
from interp_gpt2.analysis.neuron_auroc import BinaryLabels, exact_aurocs, streamed_aurocs
from interp_gpt2.analysis.windows import Windows, columns_of, neuron_layers

FROM_STORE = "exact, one layer from a store"
PARTS = ("forward", "activations", "exact", "streamed", FROM_STORE)
MOST_PASSES, MOST_BYTES = 4.0, 2e9


def windows_of(config: GPT2Config, n_tokens: int, n_pos: int) -> Windows:
    draw = torch.Generator().manual_seed(0)
    return Windows.of(torch.randint(config.d_vocab, (max(1, n_tokens // n_pos), n_pos), generator=draw))


def labels_of(n: int) -> BinaryLabels:
    """Ten labels, from even to rare."""
    draw = np.random.default_rng(0)
    positive = draw.random((n, 10)) < np.array([0.5, 0.3, 0.2, 0.1, 0.05] * 2)
    return BinaryLabels(tuple(f"label {i}" for i in range(10)), positive, np.ones(n, dtype=bool))


@torch.no_grad()
def work(part: str, model: GPT2, windows: Windows, labels: BinaryLabels) -> list[np.ndarray]:
    if part == "forward":
        for tokens in windows.tokens.split(max(1, 4096 // windows.tokens.shape[1])):
            model(tokens)
        return []
    found = []
    for _layer, batches in neuron_layers(model, windows):
        if part == "activations":
            continue
        if part == "streamed":
            streamed = streamed_aurocs(batches, labels)
            found += [streamed.auroc, streamed.error]
        else:
            found.append(exact_aurocs(columns_of(batches, windows.n_tokens), labels).auroc)
    return found


def stored(folder: Path, labels: BinaryLabels) -> list[np.ndarray]:
    """One layer from an activation store, verified, without a model."""
    store = ActivationStore(folder / "store")
    return [exact_aurocs(columns_of(batches, len(store)), labels).auroc for _, batches in store.layers("mlp.post")]


def alone(part: str, options: argparse.Namespace, folder: Path) -> None:
    """One part in this process; its time, memory and results go to the folder."""
    clock = process_time if options.cpu_time else perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    config = GPT2Config(n_layers=options.layers)
    windows = windows_of(config, options.tokens, options.pos)
    labels = labels_of(windows.n_tokens)
    from_disk = part == FROM_STORE
    model = None if from_disk else GPT2(config).eval()
    start = clock()
    found = stored(folder, labels) if from_disk else work(part, model, windows, labels)
    seconds = clock() - start
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    np.savez(folder / f"{part}.npz", *found)
    (folder / f"{part}.json").write_text(json.dumps({"seconds": seconds, "resident_bytes": resident}))
    if part == "activations":  # what the part that reads a store reads
        texts = Texts.of(windows.tokens, windows.lengths, windows.documents)
        create_store(folder / "store", model, texts, Recording(["blocks.0.mlp.post"], "float32"))


def report(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    results = {part: json.loads((folder / f"{part}.json").read_text()) for part in PARTS}
    forward = results["forward"]["seconds"]
    for part, one in results.items():
        one["forward_passes"] = one["seconds"] / forward
        said = f"{part}: {one['seconds']:.1f} s, {one['forward_passes']:.2f} forward passes"
        print(f"{said}, {one['resident_bytes'] / 1e9:.2f} GB resident")
    exact, streamed = (np.load(folder / f"{part}.npz") for part in ("exact", "streamed"))
    apart, bound = 0.0, 0.0
    for layer in range(options.layers):
        difference = np.abs(exact[f"arr_{layer}"] - streamed[f"arr_{2 * layer}"])
        error = streamed[f"arr_{2 * layer + 1}"]
        assert (difference <= error + 1e-12).all(), "streamed AUROC outside its own bound"
        apart, bound = max(apart, float(difference.max())), max(bound, float(error.max()))
    n = exact["arr_0"].shape[1] * options.layers
    print(f"{n:,} neurons: exact and streamed differ by at most {apart:.1e}, within the bound that streamed states, {bound:.1e}")
    met = {part: results[part]["forward_passes"] <= MOST_PASSES for part in ("exact", "streamed")}
    met[FROM_STORE] = results[FROM_STORE]["resident_bytes"] <= MOST_BYTES
    print("; ".join(f"{part}: {'met' if is_met else 'MISSED'}" for part, is_met in met.items()))
    return {"neurons": n, "parts": results, "apart": apart, "bound": bound, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--pos", type=int, default=256)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread, not the time on the clock")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="for what the parts leave each other (a layer's activations: 1.2 GB)")
    options = parser.parse_args()
    if options.part:
        return alone(options.part, options, options.folder)
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(dir=options.folder) as folder:
        for part in PARTS:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", folder], check=True)
        found = report(Path(folder), options)
    if options.json:
        run = {"circumstances": circumstances(options.cpu_time), "tokens": options.tokens, **found}
        options.json.write_text(json.dumps(run, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
