"""Checkpoints that somebody made to do harm: refused, nothing is run, followed, or read into memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mizzle.errors import CheckpointError
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.manifest import MANIFEST, Manifest, Part
from mizzle.training.state import pack_state, unpack_state
from unit.training.checkpoints import NUM_ELEMENTS, save, state_of

MEMORY_BYTES = 32 * 2**20
WHOLE = [(0, NUM_ELEMENTS)]
Content = dict[str, Any]


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.canary), "w")


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


def zipped(canary: Path) -> bytes:
    raw = io.BytesIO()
    torch.save(Payload(canary), raw)
    assert zipfile.is_zipfile(raw)
    return raw.getvalue()


def headed(header: bytes, data: bytes = bytes(8)) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def tensors(entries: str) -> bytes:
    return headed(b'{"__metadata__": {"mizzle": "{}"}, ' + entries.encode() + b"}")


def without(name: str) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    found, scalars = unpack_state(state_of(1, WHOLE))
    return found, {**scalars, name: None}


EMPTY_LIST = rb"\u005b\u005d\u002c"
FLOAT = '{"dtype": "F32", "shape": [1], "data_offsets": '
PARTS: dict[str, Callable[[Path], bytes]] = {
    "pickle": pickled,
    "zip": zipped,
    "pickle as header": lambda canary: headed(pickled(canary)),
    "nothing": lambda _: b"",
    "4 bytes": lambda _: b"\2\0\0\0",
    "no header": lambda _: struct.pack("<Q", 0) + bytes(100),
    "header of 1 GB": lambda _: struct.pack("<Q", 2**30) + b"{}" + bytes(1000),
    "header of 2^64": lambda _: struct.pack("<Q", 2**64 - 1) + b"{}" + bytes(1000),
    "deep header": lambda _: headed(b"[" * 200_000),
    "wide header": lambda _: headed(b"[" + b"[]," * (16 * 2**20 // 3 - 2) + b"[]]"),
    "less wide header": lambda _: headed(b"[" + b"[]," * (4 * 2**20 // 3 - 2) + b"[]]"),
    "wide header of objects": lambda _: tensors(",".join(f'"{at:x}":{{}}' for at in range(400_000))),
    "wide scalars, hidden": lambda _: headed(b'{"__metadata__": {"mizzle": "[' + EMPTY_LIST * 150_000 + b'1]"}}'),
    "as many names as may be": lambda _: tensors(",".join(f'"{at:020x}":0' for at in range(59_990)).ljust(2**22 - 99)),
    "many names, one of them wide": lambda _: tensors(
        ",".join(f'"{at:020x}":0' for at in range(55_000)) + ',"\U0001f600":0' + " " * 2**20
    ),
    "as many objects as may be": lambda _: tensors(",".join(f'"{at:048x}":{{"":0}}' for at in range(29_990))),
    "as many texts as may be": lambda _: tensors(f'"x": [{",".join(f"{at:08}" for at in range(2**18 - 99))}]'),
    "overlap": lambda _: tensors(f'"x": {FLOAT}[0, 4]}}, "y": {FLOAT}[0, 4]}}'),
    "hole": lambda _: tensors(f'"x": {FLOAT}[0, 4]}}'),
    "outside": lambda _: tensors(f'"x": {FLOAT}[8, 12]}}'),
    "before": lambda _: tensors(f'"x": {FLOAT}[-4, 0]}}'),
    "twice": lambda _: tensors(f'"x": {FLOAT}[0, 4]}}, "x": {FLOAT}[4, 8]}}'),
    "no numbers": lambda _: tensors('"x": {"dtype": "F32", "shape": [true, 1.0], "data_offsets": [0, 8]}'),
    "huge and empty": lambda _: tensors(
        f'"x": {{"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, '
        f'"y": {{"dtype": "F32", "shape": [0, {2**62}, {2**62}], "data_offsets": [8, 8]}}'
    ),
    "other ranges": lambda _: state_of(1, [(0, 32)]),
    "no log": lambda _: pack_state(*without("log")),
    "no signature": lambda _: pack_state(*without("signature")),
    "no optimizer": lambda _: pack_state(*without("scalars")),
    "no state of a rank": lambda _: tensors('"x": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}'),
}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "run"))


def refused(store: CheckpointStore, name: str, match: str) -> None:
    """Whoever touches it gets our error, and no memory is spent on it."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = resident("VmHWM")
    with pytest.raises(CheckpointError, match=match):
        store.verify(name)
    assert store.newest_valid() is None
    grown = resident("VmHWM") - before
    assert grown <= MEMORY_BYTES, f"{grown} bytes of memory for a checkpoint that is refused"


def resident(which: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return 1024 * int(line.split()[1])


def test_the_measure_of_memory_sees_what_is_taken_and_given_back() -> None:
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmHWM")
    bytearray(b"x") * (2 * MEMORY_BYTES)
    assert resident("VmHWM") - before > MEMORY_BYTES


def forged(store: CheckpointStore, name: str, change: Callable[[Content], object]) -> None:
    """Change a manifest and sign it as one that was written so."""
    path = Path(store.path) / name / MANIFEST
    content = json.loads(path.read_bytes())
    del content["sha256"]
    change(content)
    body = json.dumps(content).encode()
    path.write_bytes(body[:-1] + b', "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n')


def with_part(store: CheckpointStore, raw: bytes) -> str:
    """A checkpoint whose manifest vouches for this part."""
    name = save(store, 1, [WHOLE])
    path = Path(store.path) / name / "part-00000.safetensors"
    path.write_bytes(raw)
    forged(
        store, name,
        lambda content: content["parts"][0].update(bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest()),
    )  # fmt: skip
    return name


def test_a_forged_checkpoint_that_is_in_order_is_read(store: CheckpointStore) -> None:
    name = with_part(store, state_of(1, WHOLE))
    assert store.verify(name).parts[0].num_bytes == len(state_of(1, WHOLE))


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_that_is_no_state_is_refused_although_its_manifest_vouches_for_it(
    kind: str, store: CheckpointStore, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    name = with_part(store, PARTS[kind](canary))
    refused(store, name, match=f"{name}/part-00000.safetensors: ")
    assert not canary.exists()


def test_what_a_forged_checkpoint_says_is_told_without_what_terminals_obey(store: CheckpointStore) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\n"
    name = save(store, 1, [WHOLE])
    changes: tuple[Callable[[Content], object], ...] = (
        lambda content: content["parameters"][0].update(name=escape, tensor="buffer.x", start=0),
        set_at("parts", 0, escape, to=1),
        set_at(escape, to=1),
    )
    whole = (Path(store.path) / name / MANIFEST).read_bytes()
    for change in changes:
        (Path(store.path) / name / MANIFEST).write_bytes(whole)
        forged(store, name, change)
        with pytest.raises(CheckpointError, match=r"\\x1b\[2J") as caught:
            store.verify(name)
        assert str(caught.value).isprintable()
    name = with_part(store, tensors(f'"x": {FLOAT}[0, 4], {json.dumps(escape)}: 1}}'))
    with pytest.raises(CheckpointError, match=r"\\x1b\[2J") as caught:
        store.verify(name)
    assert str(caught.value).isprintable()


def test_a_part_with_a_header_of_one_gigabyte_is_not_read_into_memory(store: CheckpointStore) -> None:
    name = with_part(store, struct.pack("<Q", 2**30))
    path = Path(store.path) / name / "part-00000.safetensors"
    os.truncate(path, 2**30 + 4096)
    forged(store, name, lambda content: content["parts"][0].update(bytes=2**30 + 4096))
    refused(store, name, match="its header cannot be 1073741824 bytes long")
    with pytest.raises(CheckpointError, match="its header cannot be"):
        store.read_part(name, store.read(name).parts[0])


def set_at(*keys: str | int, to: object) -> Callable[[Content], object]:
    def change(content: Content) -> None:
        target: Any = content
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = to

    return change


FORGERIES: dict[str, Callable[[Content], object]] = {
    "parent folder": set_at("parts", 0, "file", to="../../canary"),
    "absolute": set_at("parts", 0, "file", to="/etc/passwd"),
    "folder": set_at("parts", 0, "file", to="x/part-00000.safetensors"),
    "newline": set_at("parts", 0, "file", to="part-00000.safetensors\n"),
    "other digits": set_at("parts", 0, "file", to="part-0000\u0660.safetensors"),
    "nul": set_at("parts", 0, "file", to="part-00000.safetensors\0"),
    "no text": set_at("parts", 0, "file", to=["part-00000.safetensors"]),
    "manifest as part": set_at("parts", 0, "file", to=MANIFEST),
    "frozen elsewhere": set_at("frozen", "file", to="../frozen.safetensors"),
    "same file twice": lambda content: content["parts"].append({**content["parts"][0], "owned": []}),
    "same name twice": lambda content: content["parameters"].append(content["parameters"][0]),
    "negative length": set_at("parts", 0, "bytes", to=-1),
    "length no number": set_at("parts", 0, "bytes", to=1.0),
    "length true": set_at("parts", 0, "bytes", to=True),
    "longer than it is": set_at("parts", 0, "bytes", to=2**50),
    "no length": lambda content: content["parts"][0].pop("bytes"),
    "huge vector": set_at("num_elements", to=2**59),
    "beyond numbers": set_at("num_elements", to=10**400),
    "no element owned": set_at("parts", 0, "owned", to=[]),
    "hole": set_at("parts", 0, "owned", to=[0, 32, 64, 96]),
    "overlap": set_at("parts", 0, "owned", to=[0, 64, 32, 96]),
    "backwards": set_at("parts", 0, "owned", to=[96, 0]),
    "half a range": set_at("parts", 0, "owned", to=[0, 96, 96]),
    "huge parameter": set_at("parameters", 0, "shape", to=[2**40, 2**40]),
    "parameter outside": set_at("parameters", 0, "start", to=90),
    "parameter nowhere": set_at("parameters", 3, "tensor", to="buffer.of another"),
    "parameter of a file": set_at("parameters", 3, "tensor", to="../buffer.x"),
    "other iteration": set_at("iteration", to=2),
    "other name": set_at("name", to="ck-000000000001-0123456789abcdef"),
    "other format": set_at("format", to=2),
    "extra field": set_at("__class__", to="os.system"),
    "training no object": set_at("training", to=[1]),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_manifest_is_refused(kind: str, store: CheckpointStore, tmp_path: Path) -> None:
    name = save(store, 1, [WHOLE])
    (tmp_path / "canary").write_bytes(state_of(1, WHOLE))
    forged(store, name, FORGERIES[kind])
    refused(store, name, match=name)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 60_000, b'{"a":' * 60_000, b"[" * 4_000_000,
        b"[" + b"1," * 2_000_000 + b"1]", b'["' + b"x" * 4_000_000 + b'"]', b"9" * 1_000_000,
        b'{"format": 1, "format": 1}', pickled(Path("/nowhere")),
    ],
    ids=lambda raw: f"{raw[:5]!r}x{len(raw)}",
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(raw: bytes, store: CheckpointStore) -> None:
    name = save(store, 1, [WHOLE])
    (Path(store.path) / name / MANIFEST).write_bytes(raw)
    refused(store, name, match=f"{name}/{MANIFEST}")


def test_a_manifest_of_one_gigabyte_is_not_read(store: CheckpointStore) -> None:
    name = save(store, 1, [WHOLE])
    os.truncate(Path(store.path) / name / MANIFEST, 2**30)
    refused(store, name, match="are not read")


def test_more_than_a_manifest_may_hold_is_not_written(store: CheckpointStore) -> None:
    name = save(store, 1, [WHOLE])
    good = store.read(name)
    huge: tuple[Content, ...] = ({"x": "y" * 2**23}, {"x": [1] * 2**19}, {"x": [[]] * 2**17})
    for training in huge:
        with pytest.raises(CheckpointError, match="are not read"):
            Manifest(name, 1, "r", 0, NUM_ELEMENTS, good.parts, (), training).to_json()
    with pytest.raises(CheckpointError, match="what describes the training is no JSON"):
        Manifest(name, 1, "r", 0, NUM_ELEMENTS, good.parts, (), {"x": object()}).to_json()
    with pytest.raises(CheckpointError, match="stands where"):
        Manifest(name, 1, "r/../x", 0, NUM_ELEMENTS, good.parts, (), {}).to_json()
    twice = (
        Part("part-00000.safetensors", 1, "0" * 64, ((0, 64),)),
        Part("part-00000.safetensors", 1, "0" * 64, ((64, 96),)),
    )
    with pytest.raises(CheckpointError, match="two parts have the same file"):
        Manifest(name, 1, "r", 0, NUM_ELEMENTS, twice, (), {}).to_json()


def to_itself(path: Path, real: Path) -> None:
    path.rename(real)
    path.symlink_to(real)


def to_device(path: Path, real: Path) -> None:
    path.rename(real)
    path.symlink_to("/dev/zero")


def pipe(path: Path, real: Path) -> None:
    path.rename(real)
    os.mkfifo(path)


def folder(path: Path, real: Path) -> None:
    path.rename(real)
    path.mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("file", ["part-00000.safetensors", "frozen.safetensors", MANIFEST])
@pytest.mark.parametrize("instead", [to_itself, to_device, pipe, folder])
def test_what_is_no_regular_file_is_not_followed_and_not_waited_for(
    instead: Callable[[Path, Path], None], file: str, store: CheckpointStore, tmp_path: Path
) -> None:
    name = save(store, 1, [WHOLE])
    instead(Path(store.path) / name / file, tmp_path / "real")
    why = " is no regular file" if instead in {pipe, folder} else ": Too many levels of symbolic links"
    refused(store, name, match=f"{name}/{file}{why}")


def test_a_folder_that_is_a_link_is_not_followed_and_what_it_leads_to_not_removed(
    store: CheckpointStore, tmp_path: Path
) -> None:
    name = save(store, 1, [WHOLE])
    (Path(store.path) / name).rename(tmp_path / "real")
    (Path(store.path) / name).symlink_to(tmp_path / "real")
    refused(store, name, match=name)
    newer = save(store, 2, [WHOLE])
    store.retain(1)
    assert [one.name for one in store.listed()] == [newer]
    assert (tmp_path / "real" / MANIFEST).exists()
