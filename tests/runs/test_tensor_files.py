"""safetensors headers are looked at before a byte of the values is touched."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from interp_gpt2.errors import CheckpointError
from interp_gpt2.runs.tensor_files import (
    MAX_HEADER,
    TensorInfo,
    file_size,
    header_of_bytes,
    header_of_file,
    tensor_chunks,
    tensors_of_bytes,
    tensors_of_file,
)

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(7),
    "c": torch.zeros(0, 4),
    "d": torch.ones(3, dtype=torch.bfloat16),
}


def tensors_to_bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(tensor_chunks(tensors))


def file_of(header: Any, values: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_is_written_is_what_the_header_says_and_what_is_read(tmp_path: Path) -> None:
    data = tensors_to_bytes(TENSORS)
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    header = header_of_bytes(data, path)
    assert header == header_of_file(path)
    assert header["a"] == TensorInfo("F32", (2, 3))
    for loaded in (tensors_of_bytes(data, path), tensors_of_file(path)):
        assert loaded.keys() == TENSORS.keys()
        assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_the_file_is_to_the_byte_what_the_safetensors_library_writes() -> None:
    import safetensors.torch

    draw = torch.Generator().manual_seed(0)
    kinds = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32,
             torch.float64, torch.int64)  # fmt: skip
    values = [torch.randint(0, 2, (n % 4, n % 3 + 1), generator=draw).to(kinds[n % 10]) for n in range(40)]
    tensors = {f"{'gfedcba'[n % 7]}{n}": value for n, value in enumerate(values)}
    for some in (TENSORS, tensors, {}, {"a": torch.tensor(1.5)}):
        expected = safetensors.torch.save(some, metadata={"format": "pt"})
        assert tensors_to_bytes(some) == expected
        infos = header_of_bytes(expected, "x")
        assert file_size(infos) == len(expected)


def test_tensors_on_the_cpu_are_not_copied_to_be_written() -> None:
    tensor = torch.zeros(1000)
    _, body = tensor_chunks({"a": tensor})
    tensor[0] = 1
    assert bytes(body[:4]) == bytes(torch.ones(1).numpy())


def test_transposed_and_differentiable_tensors_are_written_as_they_look() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    loaded = tensors_of_bytes(tensors_to_bytes({"t": tensor}), "x")["t"]
    assert torch.equal(loaded, tensor)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"\x01\x02", "truncated"),
        (b"\xff" * 8, "truncated"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b" " * (MAX_HEADER + 1), "no GPT-2 needs more"),
        (file_of(b"[]"), "not an object"),
        (file_of(b"{"), "not valid JSON"),
        (file_of(b"[" * 100_000), "not valid JSON"),
        (file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":1}', b"x" * 8), "'a' is there twice"),
        (file_of({"a": entry()}, b"x" * 7), "truncated"),
        (file_of({"a": entry()}, b"x" * 9), "padded"),
        (file_of({"a": entry(), "b": entry()}, b"x" * 8), "overlap"),
        (file_of({"a": entry(), "b": entry(offsets=(12, 20))}, b"x" * 20), "holes"),
        (file_of({"a": entry(shape=(3,))}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": entry(shape=(1 << 62, 4))}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": entry(shape=(-1, -2))}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": entry(shape=(True, 2))}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": entry(shape="2")}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": entry(offsets=(8, 0))}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": entry(dtype="F8_E4M3")}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": entry(dtype=["F32"])}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": entry() | {"more": 1}}, b"x" * 8), "no tensor under 'a'"),
        (file_of({"a": None}), "no tensor under 'a'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_lies_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(data)
    for read in (lambda: header_of_bytes(data, path), lambda: header_of_file(path)):
        with pytest.raises(CheckpointError, match=message) as refusal:
            read()
        assert str(path) in str(refusal.value)


def test_300_random_headers_are_read_or_refused_and_nothing_else() -> None:
    draw, whole = random.Random(0), tensors_to_bytes(TENSORS)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data) - 37)] = draw.choice(b'{}[]",:0123456789abF \x00\xff')
        try:
            header_of_bytes(bytes(data), "x")
            tensors_of_bytes(bytes(data), "x")
        except CheckpointError:
            refused += 1
    assert refused > 200
