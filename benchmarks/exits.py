"""How often a process that has trained with others aborts at its exit, by the command and by a call of `train`.

    python benchmarks/exits.py --runs 50 --json exits.json

gloo's threads have aborted processes that were done (6 of 36) where the wrapped model outlived its group.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

RECIPE = """
data = "repeated-random"
n_steps = 3
batch_size = 4
eval_every = 100
device = "cpu"
threads = 1
parallel = "{parallel}"
[model]
n_layers = 1
n_heads = 2
d_model = 16
n_ctx = 8
"""
CALL = "import sys; from interp_gpt2.training.config import load_recipe; from interp_gpt2.training.loop import train; "
CALL += "train(load_recipe(sys.argv[1]), sys.argv[2])"
ROOT = Path(__file__).parents[1]


def one_run(recipe: Path, out: Path, processes: int, by_call: bool) -> tuple[int, str]:
    """The exit code of `torchrun`, which is not 0 if any process ended badly, and its last words."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    python = ["--no-python", sys.executable, "-c", CALL, str(recipe), str(out)]
    command = ["-m", "interp_gpt2", "train", str(recipe), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*torchrun, *(python if by_call else command)], capture_output=True, text=True, timeout=240, env=environment
    )
    return done.returncode, done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="of each kind")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where the counts go")
    args = parser.parse_args()
    counts: dict[str, dict[str, int]] = {}
    with TemporaryDirectory() as folder:
        for by_call in (True, False):
            codes: Counter[str] = Counter()
            for number in range(args.runs):
                parallel = ("ddp", "fsdp")[number % 2]
                recipe = Path(folder) / f"{parallel}.toml"
                recipe.write_text(RECIPE.format(parallel=parallel))
                began = time.perf_counter()
                code, words = one_run(recipe, Path(folder) / f"{by_call}-{number}", args.processes, by_call)
                codes[str(code)] += 1
                seconds = time.perf_counter() - began
                print(f"{'call' if by_call else 'command'} {number + 1}: {code} in {seconds:.0f} s", flush=True)
                if code:
                    print(words, file=sys.stderr)
            counts["call" if by_call else "command"] = dict(codes)
    print(json.dumps(counts))
    if args.json:
        args.json.write_text(json.dumps({"processes": args.processes, "exit_codes": counts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
