"""What is saved is what is loaded, by any number of ranks, on every kind of file system; nothing else is touched."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from mizzle.errors import CheckpointError
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.export import describe, export, merged, written_with
from mizzle.training.flat import FlatParameters
from mizzle.training.manifest import FROZEN, MANIFEST, Manifest, Part
from mizzle.training.recut import owned_of
from mizzle.training.state import pack_state, unpack_state
from unit.training.checkpoints import HALVES, NUM_ELEMENTS, assert_loads, files_of, save, state_of
from unit.training.runs import PLACEMENTS, SCATTERED, Mlp, Training, digits, train


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """The address of a server that speaks S3."""
    from moto.server import ThreadedMotoServer  # a second, which only these tests shall wait for

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "renaming", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    """An empty one: on this machine, where files get their names by a move, and on an object store."""
    if request.param == "local":
        return CheckpointStore(str(tmp_path / "deep" / "run"))
    if request.param == "renaming":
        handler = fs.FSSpecHandler(fsspec.filesystem("file"))
        return CheckpointStore(str(tmp_path / "deep" / "run"), fs.PyFileSystem(handler))
    bucket = fs.S3FileSystem(
        endpoint_override=request.getfixturevalue("object_store"), scheme="http", access_key="a",
        secret_key="b", region="us-east-1", allow_bucket_creation=True,  # noqa: S106 - it lets everybody in
    )  # fmt: skip
    bucket.create_dir("bucket")
    return CheckpointStore(f"bucket/{tmp_path.name}", bucket)


@st.composite
def divisions(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """Every unit of 8 elements belongs to one of some ranks; ranks may own nothing."""
    owner = draw(st.lists(st.integers(0, 4), min_size=NUM_ELEMENTS // 8, max_size=NUM_ELEMENTS // 8))
    return [[(8 * at, 8 * at + 8) for at, one in enumerate(owner) if one == rank] for rank in range(5)]


@settings(deadline=None, max_examples=25)
@given(divisions(), divisions(), st.integers(0, 10**12 - 1))
def test_what_any_ranks_save_any_others_load(
    then: list[list[tuple[int, int]]], now: list[list[tuple[int, int]]], iteration: int
) -> None:
    with tempfile.TemporaryDirectory() as path:
        store = CheckpointStore(path)
        name = save(store, iteration, then)
        found = store.newest_valid()
        assert found is not None
        assert found[0] == name
        assert_loads(store, found[1], now)


def test_a_save_is_found_loaded_and_replaced_by_the_next(store: CheckpointStore) -> None:
    assert store.listed() == []
    assert store.newest_valid() is None
    first = save(store, 5)
    second = save(store, 12)
    unfinished = store.begin(20)
    store.write_part(unfinished, 0, state_of(20, [(0, NUM_ELEMENTS)]), [(0, NUM_ELEMENTS)])
    assert [(one.name, one.iteration, one.committed) for one in store.listed()] == [
        (unfinished, 20, False), (second, 12, True), (first, 5, True),
    ]  # fmt: skip
    found = store.newest_valid()
    assert found is not None
    assert found[1] == store.verify(second) == store.read(second)
    assert_loads(pickle.loads(pickle.dumps(store)), found[1], HALVES)  # noqa: S301 - made here
    third = save(store, 13)
    store.retain(2)
    store.sweep(protect=[unfinished])
    assert [one.name for one in store.listed()] == [unfinished, third, second]
    store.retain(1)
    store.sweep()
    assert [one.name for one in store.listed()] == [third]
    store.verify(third)


def test_a_training_goes_on_from_storage_with_another_number_of_ranks(store: CheckpointStore) -> None:
    training = Training(lambda: Mlp(norm=True, dropout=0.2), digits(), lambda groups: torch.optim.Adam(groups, lr=0.01))
    plans = training.plans(6)
    [steady] = train(training, PLACEMENTS[1], plans)
    model = training.fresh_model()
    flat = FlatParameters(model, training.spec(model).groups)
    states: list[bytes] | None = None
    losses: list[float] = []
    for placement, begin in ((PLACEMENTS[4], 0), (SCATTERED, 2), (PLACEMENTS[2], 4)):
        ended = train(training, placement, plans[begin : begin + 2], states)
        losses += ended[0].losses
        name = store.begin(begin + 2)
        parts = []
        for rank, one in enumerate(ended):
            owned = [(own.start, own.stop) for own in owned_of(unpack_state(one.state))]
            parts.append(store.write_part(name, rank, memoryview(one.state), owned))
        parameters, frozen = describe(model, flat)
        assert frozen is None
        store.commit(Manifest(name, begin + 2, "r", 0, flat.num_elements, tuple(parts), parameters, {}))
        manifest = store.verify(name)
        states = [bytes(store.read_part(name, part)) for part in manifest.parts]
    assert losses == steady.losses
    found = merged(store, manifest)
    assert found.keys() == steady.model.keys()
    assert all(torch.equal(found[key], value) for key, value in steady.model.items())


def test_the_exported_model_loads_into_the_users_with_tied_and_frozen_parameters(tmp_path: Path) -> None:
    model = Mlp(norm=True)
    model.last.weight = model.first.weight
    model.norm.requires_grad_(requires_grad=False)
    model.register_buffer("passing", torch.ones(2), persistent=False)
    flat = FlatParameters(model)
    parameters, frozen = describe(model, flat)
    assert frozen is not None
    weights = torch.empty(flat.num_elements)
    flat.copy_to(weights)
    raw = state_with(weights, {f"buffer.{name}": value for name, value in model.named_buffers()})
    store = CheckpointStore(str(tmp_path / "run"))
    name = store.begin(1)
    part = store.write_part(name, 0, raw, [(0, flat.num_elements)])
    kept = store.write_shared(name, FROZEN, frozen.to_bytes())
    store.commit(Manifest(name, 1, "r", 0, flat.num_elements, (part,), parameters, {}, kept, written_with()))
    assert export(store, store.verify(name), tmp_path / "model.safetensors") == len(model.state_dict())
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def state_with(weights: torch.Tensor, others: dict[str, torch.Tensor]) -> bytes:
    described = {
        "signature": "",
        "log": {},
        "scalars": {},
        "owned": [[0, len(weights)]],
        "spans": {"weights": [0, len(weights)]},
    }
    return pack_state({"weights": weights, **others}, described)


def test_nothing_is_written_twice(store: CheckpointStore) -> None:
    name = save(store, 3)
    with pytest.raises(CheckpointError, match=f"{name}/part-00000.safetensors: File exists"):
        store.write_part(name, 0, b"other", [])
    with pytest.raises(CheckpointError, match=f"{name}/MANIFEST.json: it is committed already"):
        store.commit(store.read(name))
    store.verify(name)
    assert store.begin(3) != store.begin(3)


def test_a_commit_is_refused_while_the_driver_does_not_see_all_files(store: CheckpointStore) -> None:
    manifest = store.read(save(store, 3))
    name = store.begin(3)
    for wrong in (None, b"short"):
        if wrong is not None:
            store.write_part(name, 0, wrong, [])
        described = Manifest(name, 3, "r", 0, NUM_ELEMENTS, manifest.parts, (), {})
        seen = "no such file" if wrong is None else "5"
        with pytest.raises(CheckpointError, match=f"part-00000.safetensors: was written with .* driver sees {seen}"):
            store.commit(described)
    assert not next(one for one in store.listed() if one.name == name).committed


def test_old_ones_are_removed_only_behind_one_that_was_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(str(tmp_path))
    names = [save(store, iteration) for iteration in (1, 2, 3, 4)]
    for name in names[2:]:
        spoil(files_of(store, name)[2])
    with caplog.at_level(logging.WARNING):
        store.retain(1)
    assert [one.name for one in store.listed()] == [names[3], names[2], names[1]]
    assert f"{names[3]}/part-00000.safetensors" in caplog.text
    spoil(files_of(store, names[1])[2])
    save(store, 5, [[(0, NUM_ELEMENTS)]])
    store.begin(6)
    spoil(files_of(store, store.listed()[1].name)[1])
    before = store.listed()
    store.retain(1)
    assert store.listed() == before, "something was removed although nothing valid is left"


def test_a_checkpoint_whose_files_ranks_have_read_again_is_not_read_by_the_driver(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    old, new = save(store, 1), save(store, 2)
    for part in store.read(new).parts:
        assert store.check_part(new, part).tensors["weights"][0] == "F32"
    spoil(files_of(store, new)[1])  # as nobody does: it shows who reads
    store.retain(1, checked=[new])
    assert [one.name for one in store.listed()] == [new]
    assert old != new


def spoil(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_a_full_disk_is_told_with_what_is_needed_and_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path))
    name = store.begin(1)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = rf"{tmp_path}/{name}/part-00003.safetensors: no room for 1000 bytes, \d+ are free: make room"
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        told = failing(lambda: store.write_part(name, 3, bytes(1000)))
    assert re.match(message, told), told


def test_where_a_uri_leads_and_what_leads_nowhere(tmp_path: Path, object_store: str) -> None:
    address = object_store.replace(":", "%3A")
    uri = f"s3://a:b@other/run?endpoint_override={address}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    remote = CheckpointStore(uri)
    fs.FileSystem.from_uri(uri)[0].create_dir("other")
    assert remote.newest_valid() is None
    assert remote.path == "s3://other/run", "what is printed has no password in it"
    save(remote, 3)
    assert [one.iteration for one in CheckpointStore(uri).listed()] == [3]
    save(CheckpointStore(f"file://{tmp_path}/x"), 1)
    below = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    for same in (CheckpointStore(str(tmp_path / "x")), CheckpointStore("x", below)):
        assert [one.iteration for one in same.listed()] == [1]
        assert same.path == str(tmp_path / "x")
    with pytest.raises(CheckpointError, match="checkpoints cannot be kept at nowhere://x"):
        CheckpointStore("nowhere://x")


@pytest.mark.parametrize("name", ["", "x", "../ck-000000000001-0123456789abcdef", "ck-1-0123456789abcdef"])
def test_what_is_no_name_of_a_checkpoint_is_not_looked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no name of a checkpoint"):
        CheckpointStore(str(tmp_path / "run")).read(name)


def test_files_of_others_at_the_path_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x").touch()
    (tmp_path / "ck-old.txt").touch()
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    save(store, 2)
    store.retain(1)
    assert [one.iteration for one in store.listed()] == [2]
    assert (tmp_path / "notes" / "x").exists()
    assert (tmp_path / "ck-old.txt").exists()


def test_what_cannot_be_removed_is_told_and_keeps_nothing_else_from_being_removed(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    _, stuck, new = (save(store, iteration) for iteration in (1, 2, 3))
    (tmp_path / stuck / "a folder").mkdir()
    assert stuck in failing(lambda: store.retain(1))
    assert [one.name for one in store.listed()] == [new, stuck]
    assert stuck in failing(store.sweep)
    (tmp_path / stuck / "a folder").rmdir()
    store.sweep()
    assert [one.name for one in store.listed()] == [new]


def test_a_file_system_that_knows_no_fsync_of_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def picky(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", picky)
        name = save(CheckpointStore(str(tmp_path)), 1)
    CheckpointStore(str(tmp_path)).verify(name)


def failing(call: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    return str(caught.value)


def test_a_part_that_is_gone_is_named(store: CheckpointStore) -> None:
    name = save(store, 1)
    part = Part("part-00007.safetensors", 9, "0" * 64, ())
    assert f"{name}/part-00007.safetensors" in failing(lambda: store.read_part(name, part))
    assert f"{MANIFEST}" in failing(lambda: store.read("ck-000000000009-0123456789abcdef"))
