"""Several processes train what one trains, stop together, and go on in another number."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, ConfigError, ProcessLostError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import (
    ResumeState,
    drop_resume,
    load_resume,
    load_weights,
    save_checkpoint,
    verify_checkpoint,
)
from interp_gpt2.runs.run import Run
from interp_gpt2.training import distributed
from interp_gpt2.training.config import Checkpoints, TrainConfig, load_recipe
from interp_gpt2.training.distributed import SHARDED_FROM, Group, Processes, joined, processes_for
from interp_gpt2.training.events import Logged
from interp_gpt2.training.loop import train
from interp_gpt2.training.optimizer import blank_tensors, make_optimizer, optimizer_tensors
from interp_gpt2.training.sharding import load_optimizer, save_shards
from interp_gpt2.training.signals import Interrupted

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=2, n_heads=2, d_model=16, n_ctx=8),
    n_steps=50,
    batch_size=12,
    lr=1e-3,
    warmup_steps=5,
    schedule="constant",
    log_every=1,
    eval_every=10,
    precision="fp32",
    device="cpu",
    threads=1,
    checkpoints=Checkpoints(resume_every=10, anchors=0),
)
DDP, FSDP = replace(CONFIG, parallel="ddp"), replace(CONFIG, parallel="fsdp")


def with_dropout(config: TrainConfig) -> TrainConfig:
    return replace(config, model=replace(config.model, dropout=0.1))


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


# Several calls of `train` one after another, since to start Python and torch takes seconds. With "signal_at", the last
# process, and only it, gets a SIGTERM while it makes that update.
JOBS = """
import json, os, signal, sys
from interp_gpt2.errors import DivergenceError
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.events import Notice
from interp_gpt2.training.launch import place
from interp_gpt2.training.loop import train
from interp_gpt2.training.signals import Interrupted
from interp_gpt2.training.update import Updates

make_update = Updates.__call__
def interrupted_update(self, step):
    if place().rank == place().world - 1 and step == signal_at:
        signal.raise_signal(signal.SIGTERM)
    return make_update(self, step)
Updates.__call__ = interrupted_update

for job in json.loads(sys.argv[1]):
    signal_at, said = job.pop("signal_at", None), []
    hear = lambda event: said.append(event.text) if isinstance(event, Notice) else None
    try:
        train(TrainConfig.from_dict(job.pop("config")), progress=hear, **job)
    except (Interrupted, DivergenceError) as stopped:
        said.append(f"{type(stopped).__name__} {getattr(stopped, 'step', '')}")
    os.write(1, (json.dumps([place().rank, job["run_dir"], said]) + "\\n").encode())  # at once: the other one writes too
"""


@contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Leave nothing of it behind. `torchrun` passes SIGTERM on to what it has started, and SIGKILL it cannot."""
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def job(config: TrainConfig, run_dir: Path, **more: object) -> dict:
    return {"config": config.to_dict(), "run_dir": str(run_dir), **more}


def run_jobs(n: int, jobs: Sequence[dict]) -> dict[tuple[int, str], list[str]]:
    """Carry out jobs by `n` processes. Returns what each said of a run, by its rank and the run's name."""
    command = [*TORCHRUN, "--nproc-per-node", str(n), "--no-python", sys.executable, "-c", JOBS, json.dumps(jobs)]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)) as process:
        stdout, stderr = process.communicate(timeout=150)
    assert process.returncode == 0, stderr
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert len(lines) == n * len(jobs)
    heard: dict[tuple[int, str], list[str]] = {}
    for rank, run_dir, said in lines:
        heard.setdefault((rank, Path(run_dir).name), []).extend(said)
    return heard


def column(run: Run, name: str) -> list[float]:
    return [row[name] for row in run.metrics() if name in row]


def largest_difference(a: Run, b: Run, name: str) -> float:
    x, y = column(a, name), column(b, name)
    assert len(x) == len(y) > 0
    return max(abs(p - q) for p, q in zip(x, y, strict=True))


def same_weights(a: Run, b: Run, step: int) -> bool:
    return a.checkpoint_hash(step) == b.checkpoint_hash(step)


def test_two_processes_train_as_one_that_accumulates(tmp_path):
    one = train(replace(CONFIG, micro_batch=6), tmp_path / "one")
    short = replace(CONFIG, n_steps=15)
    guarded = replace(short, guard_z=0.5, guard_window=4)
    jobs = {"ddp": DDP, "fsdp": FSDP}
    jobs |= {f"{name} in parts": replace(short, micro_batch=2, parallel=name) for name in ("ddp", "fsdp")}
    jobs |= {f"{name} guarded": replace(guarded, parallel=name) for name in ("ddp", "fsdp")}
    jobs |= {"fsdp unclipped": replace(short, parallel="fsdp", grad_clip=0.0)}
    run_jobs(2, [job(config, tmp_path / name) for name, config in jobs.items()])
    runs = {name: Run(tmp_path / name) for name in jobs}
    # The gradients of two halves are added up either way, so that not a bit differs; only the norm of shares is rounded apart.
    assert same_weights(one, runs["ddp"], 50)
    assert largest_difference(one, runs["ddp"], "loss") == 0
    unclipped = train(replace(short, grad_clip=0.0, micro_batch=6), tmp_path / "unclipped")
    assert same_weights(unclipped, runs["fsdp unclipped"], 15)
    assert largest_difference(one, runs["fsdp"], "loss") < 1e-6  # the last bit of a float32 near 4 is 4.8e-7
    for name in ("ddp", "fsdp"):
        assert largest_difference(one, runs[name], "val_loss") < 1e-6
        assert runs[name].steps == one.steps
        assert verify_checkpoint(runs[name].checkpoint(50)).can_resume
        fingerprint = runs[name].settings["fingerprint"]
        assert (fingerprint["processes"], fingerprint["parallel"]) == (2, name)
        parts = zip(column(one, "loss"), column(runs[f"{name} in parts"], "loss"), strict=False)
        assert max(abs(a - b) for a, b in parts) < 5e-6
    alone = train(guarded, tmp_path / "guarded")
    skipped = [row.get("skipped") for row in alone.metrics()]
    assert any(skipped)
    for name in ("ddp guarded", "fsdp guarded"):
        assert [row.get("skipped") for row in runs[name].metrics()] == skipped
        assert largest_difference(alone, runs[name], "loss") < 5e-6
    assert not list(tmp_path.glob("*/.tmp-*"))


def test_a_signal_to_one_stops_all_at_a_step_from_which_they_go_on_bit_for_bit(tmp_path):
    configs = {"ddp": with_dropout(replace(DDP, n_steps=20)), "fsdp": with_dropout(replace(FSDP, n_steps=20))}
    jobs = [job(config, tmp_path / f"{name} whole") for name, config in configs.items()]
    jobs += [job(config, tmp_path / name, signal_at=6) for name, config in configs.items()]
    jobs += [job(replace(DDP, lr=1e30, n_steps=20), tmp_path / "diverging")]
    jobs += [job(replace(FSDP, lr=1e30, n_steps=20), tmp_path / "diverging fsdp")]
    jobs += [job(config, tmp_path / name, resume=True) for name, config in configs.items()]
    said = run_jobs(2, jobs)
    for name in configs:
        whole, parts = Run(tmp_path / f"{name} whole"), Run(tmp_path / name)
        assert parts.steps == sorted({*whole.steps, 7})
        assert all(same_weights(whole, parts, step) for step in whole.steps)
        for loss in ("loss", "val_loss"):
            assert column(whole, loss) == column(parts, loss)
        assert said[0, name] == said[1, name] == ["Interrupted 7"]
    # Each process loses other values, so that two halves of a batch are not treated alike.
    assert column(Run(tmp_path / "ddp"), "loss") != column(
        train(with_dropout(replace(CONFIG, n_steps=20)), tmp_path / "1"), "loss"
    )
    for name in ("diverging", "diverging fsdp"):
        assert said[0, name][-1].startswith("DivergenceError")
        assert said[1, name][-1].startswith("DivergenceError")
        run = Run(tmp_path / name)
        assert json.loads((run.path / "divergence.json").read_text())["last_checkpoint"] == run.steps[-1]


def test_a_run_goes_on_in_another_number_of_processes_and_adds_up_in_one_order(tmp_path):
    one = train(CONFIG, tmp_path / "one")
    run_jobs(2, [job(replace(FSDP, n_steps=10), tmp_path / "fsdp"), job(replace(DDP, n_steps=10), tmp_path / "ddp")])
    assert sorted(load_resume(Run(tmp_path / "fsdp").checkpoint(10)).shards) == [
        "optimizer-00001-of-00002.safetensors",
        "optimizer-00002-of-00002.safetensors",
    ]
    three = [
        job(replace(FSDP, n_steps=20), tmp_path / "fsdp", resume=True),
        job(replace(FSDP, n_steps=20), tmp_path / "ddp", resume=True),  # what one kind wrote, the other reads
        job(replace(DDP, n_steps=20), tmp_path / "three"),
        job(replace(DDP, n_steps=10), tmp_path / "three parts"),
        job(replace(DDP, n_steps=20), tmp_path / "three parts", resume=True),
    ]
    said = run_jobs(3, three)
    assert "processes 2, now 3" in said[0, "fsdp"][0]
    assert "processes 2, now 3, parallel 'ddp', now 'fsdp'" in said[0, "ddp"][0]
    # With three or more, a sum depends on its order, which DDP would change after the first step of a process.
    assert same_weights(Run(tmp_path / "three"), Run(tmp_path / "three parts"), 20)
    for name in ("fsdp", "ddp"):
        run = train(replace(CONFIG, n_steps=30), tmp_path / name, resume=True)  # and one process reads shards
        losses = zip(column(one, "loss"), column(run, "loss"), strict=False)
        assert max(abs(a - b) for a, b in losses) < 5e-6
        assert len(run.settings["resumed"]) == 2


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # as it is in this process
def test_shards_that_do_not_fit_or_are_damaged_are_refused_by_name(tmp_path):
    model = GPT2(replace(CONFIG.model, d_vocab=64))
    optimizer = make_optimizer(model, CONFIG)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    state = optimizer_tensors(model, optimizer)
    shards = save_shards(state, tmp_path, 3)
    path = save_checkpoint(tmp_path, 3, model.state_dict(), model.config, 0, resume=ResumeState({}, {}, shards))
    blank = blank_tensors(model, optimizer)
    load_optimizer(path, blank)
    assert state.keys() == blank.keys()
    assert all(torch.equal(state[name], blank[name]) for name in state)

    shallow = GPT2(replace(model.config, n_layers=1))
    with pytest.raises(CheckpointError, match=r"does not fit this model: blocks.1\..* is not one of its"):
        load_optimizer(path, blank_tensors(shallow, make_optimizer(shallow, CONFIG)))
    narrow = GPT2(replace(model.config, d_mlp=32))
    with pytest.raises(CheckpointError, match=r"does not fit this model: .*mlp\.fc"):
        load_optimizer(path, blank_tensors(narrow, make_optimizer(narrow, CONFIG)))
    assert load_resume(path).shards.keys() == {"optimizer-00001-of-00001.safetensors"}
    (shard,) = load_resume(path).shards.values()
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"optimizer-00001-of-00001.safetensors has been altered"):
        load_resume(path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"optimizer-00001-of-00001.safetensors is missing"):
        load_weights(path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_are_dropped_like_any_resume_file(tmp_path):
    model = GPT2(replace(CONFIG.model, d_vocab=64))
    shards = save_shards({"wte.weight.exp_avg": torch.ones(64, 16)}, tmp_path, 3)
    path = save_checkpoint(tmp_path, 3, model.state_dict(), model.config, 0, resume=ResumeState({}, {}, shards))
    assert drop_resume(path) > 64 * 16 * 4
    assert not verify_checkpoint(path).can_resume
    assert not list(path.glob("optimizer*"))


def children_of(pid: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Process ids of what `pid` started, each with its environment."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        lines = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        yield int(child), dict(line.decode().split("=", 1) for line in lines if b"=" in line)


def torchrun_train(*words: str) -> AbstractContextManager[subprocess.Popen]:
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "interp_gpt2", "train", *words]
    return ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))


def wait_for_step(run_dir: Path, step: int) -> None:
    """Until the run has logged it."""
    deadline = time.monotonic() + 60
    while not (run_dir / "metrics.jsonl").exists() or not any(row["step"] >= step for row in Run(run_dir).metrics()):
        assert time.monotonic() < deadline, f"step {step} is not reached"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc, which only Linux has")
def test_when_one_process_is_killed_the_other_says_so_and_ends_and_the_run_resumes(tmp_path):
    run_dir = tmp_path / "run"
    config = tmp_path / "config.toml"
    config.write_text('data = "repeated-random"\nn_steps = 1000000\nbatch_size = 4\nlog_every = 1\neval_every = 100000\n'
                      'device = "cpu"\nthreads = 1\n[model]\nn_layers = 1\nn_heads = 2\nd_model = 16\nn_ctx = 8\n'
                      "[checkpoints]\nresume_every = 10\nanchors = 0\n")  # fmt: skip
    with torchrun_train(str(config), "--out", str(run_dir)) as process:
        wait_for_step(run_dir, 25)
        process.send_signal(signal.SIGTERM)  # as a cluster does that wants its machines back
        _, said = process.communicate(timeout=60)
    assert said.count("stopped by SIGTERM at step") == 1
    stopped = Run(run_dir).steps[-1]
    assert Run(run_dir).newest_verified_step(resumable=True).step == stopped

    with torchrun_train("--out", str(run_dir), "--resume") as process:
        wait_for_step(run_dir, stopped + 25)
        (victim,) = [pid for pid, environment in children_of(process.pid) if environment.get("RANK") == "1"]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode != 0
    assert "interp-gpt2, process 0 of 2: another of the 2 processes has ended or cannot be reached" in said
    assert "Traceback" not in said.split("interp-gpt2, process 0 of 2")[1].splitlines()[0]

    def interrupt(event):
        if isinstance(event, Logged) and event.step >= stopped + 40:
            signal.raise_signal(signal.SIGINT)

    settings = TrainConfig.from_dict(Run(run_dir).settings["config"])
    with pytest.raises(Interrupted):
        train(settings, run_dir, resume=True, progress=interrupt)
    steps = [row["step"] for row in Run(run_dir).metrics()]
    assert steps == list(range(len(steps)))


# What needs no other process -----------------------------------------------------------------------------------------------


def test_one_process_is_the_first_of_one_and_pays_nothing():
    alone = Processes()
    value = torch.ones(2)
    assert alone.first
    assert alone.mean(value) is value
    assert alone.agree(3) == alone.from_first(3) == 3
    with joined("cpu") as group:
        assert processes_for(FSDP, group) == alone
        assert not torch.distributed.is_initialized()


def test_large_models_are_spread_and_small_ones_are_not():
    two = Group(0, 2)
    xl = replace(CONFIG, model=GPT2Config(n_layers=48, n_heads=25, d_model=1600))
    small = replace(CONFIG, model=GPT2Config())
    assert small.model.n_params < SHARDED_FROM < xl.model.n_params
    assert (processes_for(small, two).parallel, processes_for(xl, two).parallel) == ("ddp", "fsdp")
    assert processes_for(replace(xl, parallel="ddp"), two).parallel == "ddp"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 5}, "batch_size=5 cannot be shared equally by 2 processes"),
        ({"parallel": "fsdp", "optimizer": "muon"}, "optimizer='muon' needs whole matrices"),
        ({"parallel": "fsdp", "micro_batch": "auto"}, "micro_batch='auto' needs"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        processes_for(replace(CONFIG, **change), Group(0, 2))


def test_a_numbered_gpu_is_refused_for_several_processes(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "here", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match="'cuda' gives each its own"), joined("cuda:1"):
        pass


def test_an_error_of_the_network_is_a_lost_process_and_any_other_error_is_itself():
    said = "another of the 2 processes has ended or cannot be reached (Connection closed by peer [::1]:12); its own last words"
    with pytest.raises(ProcessLostError, match=re.escape(said)), distributed._losses_named(2):
        raise RuntimeError("[/third_party/gloo/transport/tcp/pair.cc:53] Connection closed by peer [::1]:12. This is typically")
    with pytest.raises(RuntimeError, match="size mismatch") as error, distributed._losses_named(2):
        raise RuntimeError("size mismatch")
    assert not isinstance(error.value, ProcessLostError)


def test_the_examples_for_clusters_are_bash_and_yaml_and_their_commands_exist():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "interp_gpt2" / "training" / "CLUSTERS.md").read_text()
    (script,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    (manifests,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    service, job = yaml.safe_load_all(manifests)
    pod = job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"]
    inside = pod["containers"][0]["command"][2]
    for commands in (script, inside):
        subprocess.run(["bash", "-n"], input=commands, text=True, check=True)
        (recipe,) = re.findall(r"interp_gpt2 train (\S+)", commands)
        processes = 2 * int(re.search(r"--nproc-per-node (\d+)", commands)[1])
        assert load_recipe(recipe).batch_size % processes == 0
