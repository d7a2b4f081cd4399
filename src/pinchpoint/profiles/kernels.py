"""What a kernel is by its name: category and use of matrix units, from kernels.toml."""

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

import msgspec
import numpy as np
from numpy.typing import NDArray

from pinchpoint.profiles.trace import COPY_KINDS, KERNEL, MEMCPY, Gpu

OTHER = "other"


class Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """category: of Catalogue.categories. example: a name that it must win. seen: where such names come from."""

    category: str
    match: str
    example: str
    seen: str


class MatrixPattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """used: whether a kernel of such a name runs on tensor or matrix cores."""

    used: bool
    match: str
    example: str
    seen: str


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. categories: id -> title; groups: which categories are communication and which are copies."""

    categories: dict[str, str]
    groups: dict[str, list[str]]
    pattern: list[Pattern]
    matrix_unit: list[MatrixPattern]


@cache
def catalogue() -> Catalogue:
    text = resources.files("pinchpoint.profiles").joinpath("kernels.toml").read_bytes()
    return msgspec.toml.decode(text, type=Catalogue)


@cache
def _compiled() -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(row.match, re.IGNORECASE), row.category) for row in catalogue().pattern]


@cache
def _matrix_compiled() -> list[tuple[re.Pattern[str], bool]]:
    return [(re.compile(row.match, re.IGNORECASE), row.used) for row in catalogue().matrix_unit]


def category_of(name: str) -> str:
    """The category of the first pattern that is found in the name, OTHER for none."""
    return next((category for pattern, category in _compiled() if pattern.search(name)), OTHER)


def uses_matrix_unit(name: str) -> bool | None:
    """Whether the kernel runs on tensor or matrix cores, None if its name does not tell."""
    return next((used for pattern, used in _matrix_compiled() if pattern.search(name)), None)


@cache
def category_ids() -> tuple[str, ...]:
    """All categories; a category's number is its place in here."""
    return tuple(catalogue().categories)


@cache
def numbers_of(group: str) -> frozenset[int]:
    """The numbers of a group's categories: communication or copy."""
    return frozenset(category_ids().index(name) for name in catalogue().groups[group])


def classify(names: Sequence[str], gpu: Gpu) -> NDArray[np.int32]:
    """The category's number for each row of work: a kernel's by its name, a copy's by what the profiler says."""
    name, kind, copy = gpu.name, gpu.kind, gpu.copy
    ids = category_ids()
    numbers = np.zeros(len(name), np.int32)
    by_name = np.full(max(len(names), 1), -1, np.int32)
    for index in np.unique(name[kind == KERNEL]).tolist():
        by_name[index] = ids.index(category_of(names[int(index)]))
    is_kernel = kind == KERNEL
    numbers[is_kernel] = by_name[name[is_kernel]]
    copies = {"": "memcpy_other", "h2h": "memcpy_other"} | {
        way: f"memcpy_{way}" for way in ("h2d", "d2h", "d2d", "p2p")
    }
    for number, way in enumerate(COPY_KINDS):
        numbers[(kind == MEMCPY) & (copy == number)] = ids.index(copies[way])
    numbers[(kind != KERNEL) & (kind != MEMCPY)] = ids.index("memset")
    return numbers
