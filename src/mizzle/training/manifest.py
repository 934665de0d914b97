"""What a checkpoint says of itself: MANIFEST.json, written last. A folder without one is no checkpoint. Pure.

Read as if a stranger had written it: size and number of items are capped before anything is parsed, every field is
checked, and only the very bytes that `Manifest.to_json` would write again are accepted; they end in their own SHA-256.
`docs/checkpoints.md` has the format.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

from mizzle.errors import CheckpointError
from mizzle.training.json_limits import beyond_limits

MANIFEST = "MANIFEST.json"
FROZEN = "frozen.safetensors"
"""The file with the parameters that are not trained."""
EVALUATIONS = "evaluations.safetensors"
"""The file with the evaluations: they grow with the training, which the manifest does not."""
WEIGHTS = "weights"
"""The tensor of every part that is cut from the flat vector of weights."""

FORMAT = 1
_MAX_WHOLE = 2**60
_MAX_DIMS = 64
_ANY = re.compile(r".{1,1000}", re.DOTALL)
_NAME = re.compile(r"ck-(\d{12})-[0-9a-f]{16}")
_PART = re.compile(r"part-(\d{5})\.safetensors")
_HEX = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[0-9A-Za-z._-]{1,128}")
_TENSOR = re.compile(r"weights|(?:buffer|frozen)\..+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a checkpoint: a rank's state.

    Attributes:
        file: "part-00003.safetensors" of rank 3; "frozen.safetensors" for what no rank trains;
            "evaluations.safetensors".
        num_bytes: length of the file.
        sha256: of its content, in hex.
        owned: the ranges [start, stop) of the flat vector that the state holds, ascending; none is empty.
    """

    file: str
    num_bytes: int
    sha256: str
    owned: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """Where one entry of the model's ``state_dict()`` lies. Tied ones have the same place.

    Attributes:
        name: in the ``state_dict()``.
        shape: of the tensor.
        tensor: "weights": elements of the flat vector, fp32. "buffer.NAME": that tensor, the same in all parts.
            "frozen.NAME": that tensor in "frozen.safetensors".
        start: its first element in the flat vector; 0 for the others.
    """

    name: str
    shape: tuple[int, ...]
    tensor: str = WEIGHTS
    start: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint.

    Attributes:
        name: of its folder, from `CheckpointStore.begin`.
        iteration: iterations done.
        run: id of the run that wrote it.
        generation: of the ranks that wrote it.
        num_elements: length of the flat vector; the ranges of ``parts`` hold each element once.
        parts: the states of the ranks.
        parameters: the model's ``state_dict()``, for `mizzle ckpt export`.
        training: the driver's state: what JSON can hold, with strings as keys; floats keep their bits
            (NaN as Python writes it), tuples become lists.
        frozen: the file with the parameters that are not trained, if there are any.
        evaluations: the file with the evaluations so far, if there are any.
        written_with: versions and the like, for people: `mizzle.training.export.written_with`.
    """

    name: str
    iteration: int
    run: str
    generation: int
    num_elements: int
    parts: tuple[Part, ...]
    parameters: tuple[Parameter, ...]
    training: Mapping[str, Any]
    frozen: Part | None = None
    written_with: Mapping[str, str] = field(default_factory=dict)
    evaluations: Part | None = None

    @property
    def files(self) -> tuple[Part, ...]:
        """All files but the manifest."""
        return (*self.parts, *(part for part in (self.frozen, self.evaluations) if part is not None))

    def to_json(self) -> bytes:
        """The content of MANIFEST.json.

        Raises:
            CheckpointError: `of_json` would refuse it; says what is wrong with it.
        """
        try:
            raw = _signed(self)
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{MANIFEST} cannot be written: what describes the training is no JSON") from error
        Manifest.of_json(raw)
        return raw

    @classmethod
    def of_json(cls, raw: bytes) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: it is damaged or forged; says what is wrong with it.
        """
        try:
            text = raw.decode("ascii")
            if complaint := beyond_limits(text):
                raise CheckpointError(f"{MANIFEST} {complaint}")
            manifest = _manifest(json.loads(text))
            as_written = _signed(manifest)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{MANIFEST} is damaged: {type(error).__name__}: {error}") from error
        if as_written != raw:
            raise CheckpointError(f"{MANIFEST} is damaged: its content is not what its SHA-256 was taken of")
        return manifest


@dataclass(frozen=True, slots=True)
class Listed:
    """A folder of the store, not looked into.

    Attributes:
        name: of the checkpoint.
        iteration: from its name.
        committed: it has a manifest; else it is what a broken or unfinished save has left.
    """

    name: str
    iteration: int
    committed: bool


def part_file(rank: int) -> str:
    """The name of the file with a rank's state."""
    return f"part-{rank:05d}.safetensors"


def iteration_of(name: str) -> int | None:
    """The number of iterations in the name of a checkpoint; None if it is no such name."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[1])


def _signed(manifest: Manifest) -> bytes:
    content = {
        "format": FORMAT, "name": manifest.name, "iteration": manifest.iteration, "run": manifest.run,
        "generation": manifest.generation, "num_elements": manifest.num_elements,
        "parts": [_part_json(part) for part in manifest.parts],
        "frozen": None if manifest.frozen is None else _part_json(manifest.frozen),
        **({} if manifest.evaluations is None else {"evaluations": _part_json(manifest.evaluations)}),
        "parameters": [
            {"name": one.name, "shape": list(one.shape), "tensor": one.tensor, "start": one.start}
            for one in manifest.parameters
        ],
        "training": dict(manifest.training), "written_with": dict(manifest.written_with),
    }  # fmt: skip
    body = json.dumps(content).encode()
    return body[:-1] + b', "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def _part_json(part: Part) -> dict[str, Any]:
    owned = [edge for one in part.owned for edge in one]
    return {"file": part.file, "bytes": part.num_bytes, "sha256": part.sha256, "owned": owned}


def _manifest(content: dict[str, Any]) -> Manifest:
    """Check every field; what is missing, superfluous or of another type raises one of Python's own errors."""
    if type(content) is not dict:
        raise TypeError("it is no object")
    if content.pop("format") != FORMAT:
        raise ValueError(f"format is not {FORMAT}: it was written by another version of mizzle, read it with that one")
    _text(content.pop("sha256"), _HEX)
    parts, parameters, frozen = content.pop("parts"), content.pop("parameters"), content.pop("frozen")
    evaluations = content.pop("evaluations", None)
    manifest = Manifest(
        parts=tuple(_part(**part) for part in parts),
        parameters=tuple(_parameter(**one) for one in parameters),
        frozen=None if frozen is None else _part(**frozen),
        evaluations=None if evaluations is None else _part(**evaluations),
        **content,
    )
    if iteration_of(_text(manifest.name, _NAME)) != _whole(manifest.iteration):
        raise ValueError(f"{manifest.name} is not of iteration {manifest.iteration}")
    _text(manifest.run, _RUN)
    _whole(manifest.generation)
    if not all(isinstance(value, str) for value in manifest.written_with.values()):
        raise TypeError("written_with holds something else than text")
    if not isinstance(manifest.training, dict):
        raise TypeError("training is no object")
    _check_parts(manifest)
    _check_parameters(manifest)
    return manifest


def _check_parts(manifest: Manifest) -> None:
    for part in manifest.parts:
        _text(part.file, _PART)
    if len({part.file for part in manifest.parts}) != len(manifest.parts):
        raise ValueError("two parts have the same file")
    for one, file in ((manifest.frozen, FROZEN), (manifest.evaluations, EVALUATIONS)):
        if one is not None and (one.file != file or one.owned):
            raise ValueError(f"{one.file!r} stands for {file}")
    edges = [(0, 0), *sorted(chain.from_iterable(part.owned for part in manifest.parts))]
    edges.append((_whole(manifest.num_elements), manifest.num_elements))
    if any(before[1] != after[0] for before, after in pairwise(edges)):
        raise ValueError(f"the parts do not hold each of {manifest.num_elements} elements once")


def _check_parameters(manifest: Manifest) -> None:
    if len({one.name for one in manifest.parameters}) != len(manifest.parameters):
        raise ValueError("two parameters have the same name")
    for one in manifest.parameters:
        stop = one.start + math.prod(one.shape)
        if (stop > manifest.num_elements) if one.tensor == WEIGHTS else one.start:
            raise ValueError(f"{one.name!r} does not lie in {one.tensor!r}")
        if one.tensor.startswith("frozen.") and manifest.frozen is None:
            raise ValueError(f"{one.name!r} lies in no file")


def _part(*, file: str, bytes: int, sha256: str, owned: list[int]) -> Part:  # noqa: A002 - the field's name
    edges = [_whole(edge) for edge in owned]
    ranges = tuple(zip(edges[::2], edges[1::2], strict=True))
    if any(start >= stop for start, stop in pairwise(edges[::2])) or any(start >= stop for start, stop in ranges):
        raise ValueError(f"the ranges of {file!r} do not ascend")
    return Part(file, _whole(bytes), _text(sha256, _HEX), ranges)


def _parameter(*, name: str, shape: list[int], tensor: str, start: int) -> Parameter:
    sizes = tuple(_whole(size) for size in shape)
    if len(sizes) > _MAX_DIMS or math.prod(max(1, size) for size in sizes) > _MAX_WHOLE:
        raise ValueError(f"{name!r} has a shape that no tensor has")
    return Parameter(_text(name, _ANY), sizes, _text(tensor, _TENSOR), _whole(start))


def _whole(value: int) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_WHOLE:
        raise ValueError(f"{str(value)[:40]} is no number of things")
    return value


def _text(value: str, pattern: re.Pattern[str]) -> str:
    if type(value) is not str or pattern.fullmatch(value) is None:
        raise ValueError(f"{str(value)[:80]!r} stands where {pattern.pattern} should")
    return value
