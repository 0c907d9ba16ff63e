"""Which images look the same, although their bytes differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy

from sdlora.data.lint.measures import FINGERPRINT_EDGE, Measures

_MAX_BITS_APART = 0.20
"""Share of the 512 gradient bits that may differ. Copies that were recompressed, resized, brightened or cropped by a
few percent differ in up to 18 %; different photographs in about half, different sparse drawings in as few as 4 %."""
_MIN_CORRELATION = 0.96
"""Least correlation of the 16x16 thumbnails: what tells sparse drawings apart."""
_MIN_CONTRAST = 4.0
"""Standard deviation of a thumbnail, in levels: a flatter image has no fingerprint."""
_BLOCK_ROWS = 256


def near_duplicates(measures: Sequence[Measures]) -> Iterator[tuple[int, int]]:
    """Pairs of indices (first < second) of images that look the same.

    Every pair is compared, by matrix products over blocks of 256 images: the work grows with the square of the number
    of images (about a second for 10,000), the memory in proportion to it.
    """
    thumbnails = _thumbnails(measures)
    packed = numpy.frombuffer(b"".join(each.gradient_bits for each in measures), numpy.uint8)
    packed = packed.reshape(-1, 2 * FINGERPRINT_EDGE**2 // 8)
    most_bits = _MAX_BITS_APART * packed.shape[1] * 8
    for start in range(0, len(measures), _BLOCK_ROWS):
        correlations = thumbnails[start : start + _BLOCK_ROWS] @ thumbnails[start:].T
        alike = numpy.triu(correlations >= _MIN_CORRELATION, k=1)
        for row in numpy.flatnonzero(alike.any(axis=1)):
            first, others = start + int(row), start + numpy.flatnonzero(alike[row])
            bits_apart = numpy.unpackbits(packed[first] ^ packed[others], axis=1).sum(axis=1)
            for second in others[bits_apart <= most_bits]:
                yield first, int(second)


def _thumbnails(measures: Sequence[Measures]) -> numpy.ndarray:
    """One row an image, of mean 0 and length 1, so that a product of two is their correlation; 0 without contrast."""
    cells = FINGERPRINT_EDGE**2
    rows = numpy.frombuffer(b"".join(each.thumbnail for each in measures), numpy.uint8).reshape(-1, cells)
    thumbnails = rows.astype(numpy.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    lengths = numpy.sqrt((thumbnails**2).sum(axis=1, keepdims=True))
    thumbnails /= numpy.where(lengths < _MIN_CONTRAST * cells**0.5, numpy.inf, lengths)
    return thumbnails


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The pairs joined into groups (whoever looks like a member belongs), each sorted."""
    leader: dict[int, int] = {}

    def find(index: int) -> int:
        while leader.setdefault(index, index) != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for first, second in pairs:
        leader[max(find(first), find(second))] = min(find(first), find(second))
    members: dict[int, list[int]] = {}
    for index in sorted(leader):
        members.setdefault(find(index), []).append(index)
    return list(members.values())
