"""Memory: the distance of patches to the nearest that good images showed; beyond the paper.

A transformer learns to reconstruct some anomalies too, and misses rare good patches; a nearest neighbour errs at other
places. Patches of two kinds are remembered: parts, coarse features on the token grid, which tell what lies where, and
details, fine features on a grid twice as fine, in which a defect of a few pixels is not lost. Much as in PatchCore
(Roth et al., 2022), a patch is the mean around a place. See `adtr.training.remembering`.

The reconstruction's error and the kinds' distances are of different sizes, and a kind that varies much on good images
would drown the others in a sum. So each counts by its excess, how far it lies above what is typical of good images, in
units of how far their highest values do; and excesses are raised to a power before they are added, so that one that is
high is enough.

Shapes: B images, N = H * W tokens, C columns of a token, M patches of D channels each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.settings import Size

STRIDES = (8, 16)
"""Of the levels that parts are described by: coarser ones do not tell where."""
DETAIL_STRIDES = (4, 8)
"""Of the levels that details are described by: coarser ones have forgotten them."""
DETAIL_FOLD = 2
"""The details' grid is so many times as fine as the tokens'."""
POWER = 1.5
"""To which excesses are raised: 1 is their sum, infinity their maximum."""
SHARES = {"parts": 1.0, "details": 0.8}
"""What the kinds count."""
BLOCK = 64
"""The nearest is sought in blocks of so many patches."""
PIECE = 256
"""Places of an image that are compared at once on a CPU, where the products of more fall out of the caches."""


class Patches(nn.Module):
    """Remembered patches of one kind.

    Args:
        columns: which of a token's columns they are made of, fold * fold * D.
        grid: height and width of the token grid.
        fold: places of these patches in each direction of a token; its columns are of one place after the other.
    """

    patches: Tensor
    """Of good images, (M, D); empty until something is remembered."""
    lifted: Tensor
    """-2 p and p p^T of each, in blocks; see `lift`."""
    typical: Tensor
    """Distance, and by how much the highest distance of a good image exceeds it, (2,)."""

    def __init__(self, columns: range, grid: Size, fold: int = 1) -> None:
        super().__init__()
        self.columns, self.grid, self.fold = columns, grid, fold
        self.register_buffer("patches", torch.zeros(0, len(columns) // fold**2))
        self.register_buffer("lifted", lift(self.patches), persistent=False)
        self.register_buffer("typical", torch.tensor([0.0, 1.0]))

    def describe(self, features: Tensor) -> Tensor:
        """Features (B, N, C) to one patch for each place, (B, fold * H, fold * W, D).

        A patch is the mean over 3x3 places with the weights 1, 2, 1 each way. What lies outside the image counts as 0,
        so that places at the border, of whose surroundings less is seen, differ less.
        """
        own = features[..., self.columns.start : self.columns.stop]
        places = own.unflatten(-1, (self.fold, self.fold, -1)).unflatten(1, self.grid)
        maps = places.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        # Sums of shifted maps: pooling is slow where the channels come last.
        maps = functional.pad(maps, (0, 0, 1, 1, 1, 1))
        maps = maps[:, :-1] + maps[:, 1:]
        maps = maps[:, :-1] + maps[:, 1:]
        maps = maps[:, :, :-1] + maps[:, :, 1:]
        return (maps[:, :, :-1] + maps[:, :, 1:]) / 16

    def forward(self, features: Tensor) -> Tensor:
        """The excess of distances to the nearest patches: (B, N, C) to (B, fold * H, fold * W)."""
        return excess(nearest_distance(self.describe(features), self.patches, self.lifted), self.typical)

    def fill(self, patches: Tensor, typical: Tensor) -> None:
        """Remember these, (M, D), in the precision in which they are stored; `typical` is (2,)."""
        self.patches = patches.half().to(self.patches)
        self.lifted = lift(self.patches)
        self.typical = typical.to(self.typical)


class Memory(nn.Module):
    """Remembered patches of good images, of one or two kinds.

    Args:
        levels: channels and stride of each level of the features. Parts are made of those with a stride in `STRIDES`,
            or of all where none has one.
        details: channels of each place of the details; 0 where the backbone has no such level.
        grid: height and width of the token grid.
        size: patches of each kind to remember at most; 0: none.
    """

    typical: Tensor
    """Error s(u) of the reconstruction, and by how much the highest of a good image exceeds it, (2,)."""

    def __init__(self, levels: Sequence[tuple[int, int]], details: int, grid: Size, size: int) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.kinds = nn.ModuleDict({"parts": Patches(channels_of(levels, STRIDES), grid)})
        if details:
            first = sum(channels for channels, _ in levels)
            columns = range(first, first + details * DETAIL_FOLD**2)
            self.kinds["details"] = Patches(columns, grid, DETAIL_FOLD)
        self.register_buffer("typical", torch.tensor([0.0, 1.0]))

    def patches(self) -> dict[str, Patches]:
        """The remembered patches by kind."""
        return {name: kind for name, kind in self.kinds.items() if isinstance(kind, Patches)}

    @property
    def is_filled(self) -> bool:
        """Whether there is anything to be near to."""
        return all(len(kind.patches) > 0 for kind in self.patches().values())

    @property
    def map_size(self) -> Size:
        """Height and width of the maps that `forward` returns."""
        fold = max(kind.fold for kind in self.patches().values())
        return fold * self.grid[0], fold * self.grid[1]

    def forward(self, errors: Tensor, features: Tensor, weight: float) -> Tensor:
        """The score map with the memory's share, in the units of s(u).

        Args:
            errors: s(u) of Eq. 3, (B, H, W).
            features: standardised, with details, (B, N, C).
            weight: of each kind's excess, raised to `POWER`, beside that of the errors.

        Returns:
            (B, h, w) float32 of `map_size`; 0 where nothing exceeds what is typical.
        """
        if not torch.compiler.is_exporting() and features.device.type == "cpu" and len(features) > 1:
            pairs = zip(errors.split(1), features.split(1), strict=True)  # the products of one image stay in the caches
            return torch.cat([self(*pair, weight) for pair in pairs])
        parts = [excess(errors, self.typical) ** POWER]
        parts += [weight * SHARES[name] * kind(features) ** POWER for name, kind in self.patches().items()]
        total = torch.stack([self._resize(part) for part in parts]).sum(dim=0)
        return self.typical[1] * total ** (1 / POWER)

    def _resize(self, maps: Tensor) -> Tensor:
        if maps.shape[1:] == self.map_size:
            return maps
        return functional.interpolate(maps.unsqueeze(1), size=self.map_size, mode="bilinear").squeeze(1)

    def stored(self) -> dict[str, Tensor]:
        """What a model file keeps."""
        kept = {"typical": self.typical}
        for name, kind in self.patches().items():
            kept |= {f"kinds.{name}.patches": kind.patches.half(), f"kinds.{name}.typical": kind.typical}
        return kept

    def restore(self, stored: dict[str, Tensor]) -> None:
        """The inverse of `stored`.

        Raises:
            RuntimeError: something is missing, too much or of another shape than the configuration gives it.
        """
        expected = self.stored()
        if stored.keys() != expected.keys():
            raise RuntimeError(f"a memory of {', '.join(expected)} cannot be made of {', '.join(sorted(stored)[:9])}")
        for name, tensor in stored.items():
            shape, wanted = tensor.shape, expected[name].shape
            if name.endswith("patches"):
                fits = len(shape) == 2 and shape[1] == wanted[1] and len(tensor) <= self.size
            else:
                fits = shape == wanted
            if not fits:
                raise RuntimeError(f"a memory of {self.size} patches cannot have {name} of the shape {tuple(shape)}")
        self.typical = stored["typical"].to(self.typical)
        for name, kind in self.patches().items():
            kind.fill(stored[f"kinds.{name}.patches"], stored[f"kinds.{name}.typical"])


def excess(values: Tensor, typical: Tensor) -> Tensor:
    """How far values lie above what is typical of good images; 1: as far as the highest of a good image, at least 0.

    Args:
        values: of any shape.
        typical: the typical value, and by how much the highest of a good image exceeds it, (2,).
    """
    return ((values - typical[0]) / typical[1]).clamp_min(0)


def channels_of(levels: Sequence[tuple[int, int]], strides: Sequence[int]) -> range:
    """Those of the levels with such strides among all channels; all where none has one.

    Args:
        levels: channels and stride of each, from fine to coarse.
        strides: wanted, without a gap.
    """
    wanted = [stride in strides for channels, stride in levels for _ in range(channels)]
    return range(wanted.index(True), len(wanted) - wanted[::-1].index(True)) if any(wanted) else range(len(wanted))


def lift(others: Tensor) -> Tensor:
    """(M, D) to (m, D + 2), whose products with a point (D,) and two ones are its squared distances, less its square.

    What is added to a patch is its own square, in two parts, so that bfloat16 keeps it. m is M rounded up to a multiple
    of `BLOCK`: the rows begin anew after the last.
    """
    squares = others.square().sum(-1, keepdim=True)
    rounded = squares.bfloat16().to(squares)
    lifted = torch.cat([-2 * others, rounded, squares - rounded], dim=-1)
    return torch.cat([lifted, lifted[torch.arange(-len(others) % BLOCK) % max(1, len(others))]])


def nearest_distance(points: Tensor, others: Tensor, lifted: Tensor) -> Tensor:
    """Euclidean distance of points (..., D) to the nearest of others (M, D), (...) float32.

    Where the search is rounded, in bf16 or in an exported file of half precision, the distance to what it found is
    computed anew; in float32 the smallest of all is it.

    Args:
        points: whose distances are asked for.
        others: among which the nearest is sought.
        lifted: the same; see `lift`.
    """
    if torch.compiler.is_exporting():
        squares = lifted[: len(others), -2:].sum(-1)
        nearest = (squares - 2 * (points @ others.T).float()).argmin(-1)
        return torch.linalg.vector_norm(points - others[nearest], dim=-1)
    rows = points.flatten(0, -2)
    lifted_rows = functional.pad(rows, (0, 2), value=1)
    if torch.is_autocast_enabled(points.device.type):
        distances = torch.linalg.vector_norm(rows - others[_nearest(lifted_rows @ lifted.T) % len(others)], dim=-1)
    else:
        pieces = lifted_rows.split(PIECE) if points.device.type == "cpu" else [lifted_rows]
        smallest = torch.cat([(piece @ lifted.T).amin(-1) for piece in pieces])
        distances = (smallest + rows.square().sum(-1)).clamp_min(0).sqrt()
    return distances.unflatten(0, points.shape[:-1])


def _nearest(products: Tensor) -> Tensor:
    """The place of the smallest in each row of (n, m), m a multiple of `BLOCK`: (n,).

    PyTorch's own `argmin` goes through rows one number at a time, at two to four times the cost of the product; so the
    smallest of every `BLOCK`-th is sought first, several rows of a block abreast.
    """
    blocks = products.unflatten(1, (-1, BLOCK))
    place = blocks.amin(1).argmin(-1)
    block = blocks.gather(2, place.view(-1, 1, 1).expand(-1, blocks.shape[1], 1)).squeeze(2).argmin(-1)
    return BLOCK * block + place
