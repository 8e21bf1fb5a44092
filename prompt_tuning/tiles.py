"""Tiles: overlapping parts of an image that are encoded beside it, to see small things larger."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_OVERLAP = 1 / 3  # of a tile with its neighbour

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of the image's width and height."""


def view_boxes(tiles: tuple[int, ...]) -> list[Box]:
    """The whole image, then for each `n` of `tiles` its n × n tiles, row by row."""
    boxes = [(0.0, 0.0, 1.0, 1.0)]
    for n in tiles:
        side = _tile_side(n)
        starts = [place * side * (1 - _OVERLAP) for place in range(n)]
        boxes += [
            (left, top, min(1.0, left + side), min(1.0, top + side))
            for top in starts
            for left in starts
        ]
    return boxes


def over_the_image(maps: Tensor, tiles: tuple[int, ...]) -> Tensor:
    """Maps of views, `(classes, views, side, side)`, added up over the whole image.

    What a map has at a location is spread evenly over the location's area, so sums are kept. The
    result, `(classes, rows, columns)`, is as fine as the smallest tiles.
    """
    side = maps.shape[-1]
    finest = math.ceil(side / min(map(_tile_side, tiles), default=1))
    result = maps.new_zeros(len(maps), finest, finest)
    for view, (left, top, right, bottom) in enumerate(view_boxes(tiles)):
        rows, columns = _areas(top, bottom, side, finest), _areas(left, right, side, finest)
        result += rows.to(maps) @ maps[:, view] @ columns.T.to(maps)
    return result


def _tile_side(n: int) -> float:
    """The width of each of n tiles side by side, as a share of the image's."""
    return 1 / (n - (n - 1) * _OVERLAP)


def _areas(start: float, end: float, side: int, finest: int) -> Tensor:
    """The share of each of `side` locations between start and end that falls in each of `finest`
    equal parts of the image: `(finest, side)`, columns add to 1."""
    locations = torch.linspace(start, end, side + 1, dtype=torch.float64)
    parts = torch.linspace(0, 1, finest + 1, dtype=torch.float64)
    ends = torch.minimum(parts[1:, None], locations[1:])
    starts = torch.maximum(parts[:-1, None], locations[:-1])
    overlaps = (ends - starts).clamp(min=0)
    return overlaps / overlaps.sum(0)
