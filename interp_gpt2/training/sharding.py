"""A model whose weights, gradients and optimizer state are spread over processes: PyTorch's FSDP2, and its files.

Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020, "ZeRO". Each process writes its share of the optimizer's state
by PyTorch's distributed checkpoint, as safetensors (its other storage pickles); any number of processes, also one, reads
it back. The weights of a checkpoint are whole, as ever.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from interp_gpt2.errors import CheckpointError, CheckpointWriteError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.durable import TEMPORARY
from interp_gpt2.runs.manifest import read_manifest, shard_name, step_name
from interp_gpt2.runs.tensor_files import header_of_file


def shard(model: GPT2, world: int, compiled: bool) -> None:
    """Leave this process its share of every weight. A block is gathered when it computes, forward and backward.

    `compiled` compiles each block, since the gathering in between cannot be.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (world,))
    for block in model.blocks:
        if compiled:
            block.compile(dynamic=False)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # embeddings: backward begins with them


@torch.no_grad()
def put_weights(model: GPT2, weights: Mapping[str, Tensor]) -> None:
    """Put this process's share of whole weights into its model. Nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    for name, weight in model.state_dict().items():
        whole = weights[name].to(weight.device)
        weight.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None))


def save_shards(tensors: Mapping[str, Tensor], run_dir: Path, step: int) -> dict[str, Path]:
    """Write this process's share of `tensors` into a temporary directory of the run; all do so at once.

    Returns the files of all by the names they are to have in the checkpoint of `step`, into which the first process moves
    them (runs.checkpoint). Raises CheckpointWriteError in every process if one could not write.
    """
    if not tensors:  # before the first step
        return {}
    import torch.distributed.checkpoint as dcp

    directory = run_dir / f"{TEMPORARY}shards-{step_name(step)}"
    try:
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(directory), save_distributed=True))
    except dcp.api.CheckpointException as error:
        reasons = "; ".join(f"process {rank}: {reason}" for rank, (reason, _) in error.failures.items())
        raise CheckpointWriteError(
            f"{directory} could not be written: {' '.join(reasons.split())}; earlier checkpoints are untouched"
        ) from error
    files = sorted(directory.glob("*.safetensors"))
    return {shard_name(number, len(files)): file for number, file in enumerate(files, start=1)}


def load_optimizer(step_dir: Path, blank: Mapping[str, Tensor]) -> None:
    """Fill `blank` from the optimizer's state of a checkpoint, whole or in shards of any number; each takes what it needs.

    The tensors of `blank` are whole, or this process's share. The files must have been verified.
    Raises CheckpointError unless they hold just these tensors, in these shapes.
    """
    import torch.distributed.checkpoint as dcp

    files = [step_dir / name for name in read_manifest(step_dir).optimizer_files]
    held = {name for file in files for name in header_of_file(file)}
    for name in held ^ blank.keys():
        what = "missing" if name in blank else "not one of its"
        raise CheckpointError(f"the optimizer's state in {step_dir} does not fit this model: {name} is {what}")
    try:
        with warnings.catch_warnings():  # it takes no_dist for an oversight; every process reads for itself
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(dict(blank), storage_reader=dcp.HuggingFaceStorageReader(str(step_dir)), no_dist=True)
    except dcp.api.CheckpointException as error:
        reasons = " ".join("; ".join(str(reason) for reason, _ in error.failures.values()).split())
        raise CheckpointError(f"the optimizer's state in {step_dir} does not fit this model: {reasons}") from error
