"""Ways to damage bytes, texts and trees of JSON."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
DEEP = "@@deep@@"
"""Stands for brackets in brackets, 100,000 of them."""
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 1e308, -0.0, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "0", "NaN", "1e999", "x" * 100_000),
    *("../../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\x", "a\x00b", "\x1b[31mred", "\ud800", "\u202e", "%s{0}"),
    *([], {}, [[]], [None], [1, [2]], {"": ""}, {"a": {"b": []}}, [0] * 10_000, DEEP),
)


def damage(rng: Random, data: bytes) -> bytes:
    """Bytes of a file with one to eight changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
        at = rng.randrange(len(changed) + 1)
        if rng.random() < 0.5:  # heads hold the sizes
            at = min(at, rng.randrange(256))
        kind = rng.randrange(8)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[at : at + rng.choice((1, 4, 100))]
        elif kind == 2:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        elif kind == 3:
            changed[at:at] = changed[: rng.randrange(1, 4096)]
        elif kind == 4:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % 256**size
            changed[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))
        elif kind == 5:
            changed[at : at + 16] = bytes(len(changed[at : at + 16]))
        elif at < len(changed):
            changed[at] ^= 1 << rng.randrange(8) if kind == 6 else rng.randrange(256)
    return bytes(changed)


def damage_tree(rng: Random, tree: Any) -> Any:  # noqa: ANN401 - JSON
    """A tree of dicts, lists and values with one to four places changed, removed, repeated or exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return rng.choice(NASTY)
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            other, its_key = rng.choice(places)
            parent[key] = copy.deepcopy(other[its_key])
        elif kind == 2 and isinstance(parent, dict):
            parent[str(rng.choice(NASTY))[:100]] = parent[key]
        elif kind == 3 and isinstance(parent, list):
            parent += copy.deepcopy(parent[:100])
        else:
            parent[key] = copy.deepcopy(rng.choice(NASTY))
    return tree


def _places(tree: Any) -> Any:  # noqa: ANN401
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(min(len(tree), 50)):
            yield tree, key
            yield from _places(tree[key])


def to_text(tree: Any) -> bytes:  # noqa: ANN401
    """JSON of a tree, with what stands for depth put in."""
    text = json.dumps(tree)
    return text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def damaged_json(rng: Random, tree: Any) -> bytes:  # noqa: ANN401
    """The text of a tree, damaged as a tree, as bytes, or both."""
    kind = rng.randrange(10)
    if kind == 0:
        return damage(rng, to_text(tree))
    if kind == 1:
        return damage(rng, to_text(damage_tree(rng, tree)))
    if kind == 2:
        return rng.choice(
            (b"", b"null", b"[]", b"{}", b"9" * 10_000, b"\xff\xfe{\x00", b'{"a":' * 100_000, b"\x00" * 64)
        )
    return to_text(damage_tree(rng, tree))
