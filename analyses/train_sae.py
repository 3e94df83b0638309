"""Which sparse features make up what flows through a hook point, and how much of the model do they carry?

    python -m venv sae-room && sae-room/bin/pip install -e '.[sae]'
    sae-room/bin/python analyses/train_sae.py checkpoints/demo-induction --at blocks.0.resid_post

Activations of held-out text are stored (under RUN/analyses/activations, where a second call finds them), exported in SAELens's
layout, and a TopK autoencoder is trained on them with SAELens. It is then spliced into the model on text that it has not seen:
loss recovered beside zero and mean ablation, L0, explained variance, dead features; and the features that move the stream
most have a page each, as neurons have. SAELens needs transformer-lens < 4.
"""

import argparse
import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from interp_gpt2 import Run
from interp_gpt2.activations.creating import Recording, create_store
from interp_gpt2.activations.sae_lens import SAELensDataset, export_sae_lens
from interp_gpt2.activations.texts import Texts
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.causal.feature_history import feature_histories, strongest_features
from interp_gpt2.causal.splice import splice, splice_scores
from interp_gpt2.views import figures, save_neuron_pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

HELD_OUT = 64  # sequences that the autoencoder has not seen
SHOWN = 20  # features with a page


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--at", default="blocks.0.resid_post")
    parser.add_argument("--step", type=int, help="default: the last")
    parser.add_argument("--tokens", type=int, default=500_000, help="to store, if the held-out text has them")
    parser.add_argument("--steps", type=int, default=3000, help="of training, 1,024 tokens each")
    parser.add_argument("--features", type=int, help="default: 8 times the activation's width")
    parser.add_argument("--k", type=int, default=8, help="features that are active at a token")
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    return parser.parse_args()


def main() -> None:
    args = options()
    run, out = Run(args.run), args.out or args.run / "analyses"
    step = run.steps[-1] if args.step is None else args.step
    n_ctx = run.config.n_ctx
    windows = torch.cat([part[:, :-1] for part in run.source().validation(n_ctx, 256)])
    n_stored = min(len(windows) - HELD_OUT, -(-args.tokens // n_ctx))
    if n_stored < 1:
        raise SystemExit(f"{run.name}'s held-out text has {len(windows)} sequences; {HELD_OUT} and more are needed")
    texts = Texts.from_source(run.source(), n_ctx, n_stored * n_ctx)

    store = create_store(out / "activations" / args.at, run, texts, Recording(args.at), [step])
    exported = out / "activations" / f"{args.at}-sae-lens"
    shutil.rmtree(exported, ignore_errors=True)
    found = export_sae_lens(store, exported, step=step)
    sae = trained(found, args)

    scores = splice_scores(run.model(step), sae, windows[-HELD_OUT:], args.at)
    table = scores.to_frame()
    recovered = f"loss recovered {scores.loss_recovered_from_mean:.3f} of the mean's, {scores.loss_recovered:.3f} of zero's"
    active = f"{scores.l0.mean():.1f} of {scores.d_sae} features at a token"
    print(f"answer: {args.at}, step {step}: {active}: {recovered}, {scores.explained:.3f} of the variance; {scores.n_dead} dead")
    print(f"{run.name}, step {step:,}, {len(store):,} tokens: {scores}")
    path = out / f"sae-{args.at}.json"
    record = {
        "run": run.name,
        "step": step,
        "tokens": len(store),
        "k": args.k,
        "dataset": {**asdict(found), "path": str(exported)},
    }
    path.write_text(json.dumps(record | {"scores": json.loads(table.to_json(orient="records"))}, indent=1))
    picture = figures.save(losses(table, args.at), out / f"sae-{args.at}.pdf")
    index = pages(run, step, sae, windows[-HELD_OUT:], out / f"sae-{args.at}-features")
    print("wrote", path, out / f"sae-{args.at}", *picture, index)


def pages(run: Run, step: int, sae: torch.nn.Module, windows: torch.Tensor, folder: Path) -> Path:
    """Pages of the features that move the stream most, as of neurons, on these windows; the index of them."""
    spliced, looked_at = splice(run.model(step), sae), Windows.of(windows)
    features = strongest_features(spliced, looked_at, SHOWN)
    histories = feature_histories(lambda _: spliced, [step], looked_at, features)
    title, on = f"{run.name}, {spliced.splice.hook_point}", f"{len(windows)} held-out sequences"
    return save_neuron_pages(histories, run.tokenizer().labels, folder, title, on)


def losses(table: "DataFrame", at: str) -> "Figure":
    """The loss of the model, through the autoencoder, and without what flows through the hook point, with intervals."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = {"loss_clean": "as it is", "loss_spliced": "through the features", "loss_mean": "its mean", "loss_zero": "zero"}
    rows = table.set_index("metric").loc[list(names)]
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(figures.COLUMN, 1.5), layout="constrained")
        axes = figure.subplots()
        for y, (metric, row) in enumerate(rows.iterrows()):
            axes.plot([row["low"], row["high"]], [y, y], color=figures.COLOURS[1], linewidth=1, label=f"95 %, {names[metric]}")
            axes.plot([row["value"]], [y], "o", color=figures.COLOURS[1], markersize=4, label=names[metric])
        axes.set_yticks(range(len(names)), names.values())
        axes.set(xlabel="nats per token", title=f"Loss, {at}", ylim=(len(names) - 0.5, -0.5))
    return figure


def trained(dataset: SAELensDataset, args: argparse.Namespace) -> torch.nn.Module:
    """A TopK autoencoder of SAELens, trained by its trainer on batches from its own store, saved and read back."""
    from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.activations_store import ActivationsStore
    from sae_lens.training.sae_trainer import SAETrainer

    ((hook_name, d_in),) = dataset.columns.items()
    n_at_once = max(1, min(16, dataset.n_sequences // 4))
    activations = ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name=hook_name,
        hook_head_index=None,
        context_size=dataset.context_size,
        d_in=d_in,
        n_batches_in_buffer=64,
        total_training_tokens=args.steps * 1024,
        store_batch_size_prompts=n_at_once,
        train_batch_size_tokens=1024,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(dataset.path),
    )
    torch.manual_seed(0)
    shape = TopKTrainingSAEConfig(
        d_in=d_in,
        d_sae=args.features or 8 * d_in,
        k=args.k,
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(hook_name=hook_name),
    )
    how = SAETrainerConfig(
        total_training_samples=args.steps * 1024,
        train_batch_size_samples=1024,
        lr=1e-3,
        lr_end=1e-4,
        lr_decay_steps=args.steps // 5,
        n_batches_for_norm_estimate=min(args.steps, 50),
    )
    trainer = SAETrainer(cfg=how, sae=TopKTrainingSAE(shape), data_provider=activations)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All samples in the training dataset have been exhausted")
        sae = trainer.fit()
    place = (args.out or args.run / "analyses") / f"sae-{args.at}"
    sae.save_inference_model(str(place))
    return SAE.load_from_disk(str(place)).eval()


if __name__ == "__main__":
    main()
