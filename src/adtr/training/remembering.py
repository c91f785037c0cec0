"""What the network remembers of its training images: patches that stand for all, chosen greedily."""

from __future__ import annotations

import torch
from torch import Tensor

from adtr.errors import memory_for
from adtr.model.comparison import score_map
from adtr.model.memory import Patches, lift, nearest_distance
from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache

CANDIDATES = 40_000
"""Patches, drawn at random, among which the remembered ones are chosen."""
CANDIDATE_IMAGES = 2_000
"""Images, drawn at random, from which they come."""
PROJECTION = 64
"""Dimensions in which candidates are compared; a random projection keeps distances nearly (Johnson-Lindenstrauss)."""
SHORT_LIST, AT_ONCE = 2_048, 64
"""Candidates among which the next are sought before all are looked at again, and how many of them at most."""
SCALE_IMAGES = 40
"""Training images that tell what errors and distances are typical."""
CHUNK = 16


@memory_for("what is remembered", lower="take a smaller --memory-size or --grid-size")
@torch.no_grad()
def remember(network: ADTR, cache: FeatureCache, index: Tensor, seed: int) -> None:
    """Fill the memory of a trained network, where its configuration asks for one.

    What is typical of the reconstruction's error, and of the distance of each kind of patch, comes from training
    images, each compared with the patches of others only. Nothing here sees a held-out image.

    Args:
        network: its features are standardised and its reconstruction is trained.
        cache: raw features of the good images.
        index: the training images among them, (n,).
        seed: of what is drawn.

    Raises:
        AdtrError: memory does not suffice.
    """
    memory = network.memory
    if not memory.size:
        return
    generator = torch.Generator().manual_seed(seed)
    drawn = index[torch.randperm(len(index), generator=generator)[:CANDIDATE_IMAGES]]
    owners = {
        name: _choose(network, kind, cache, drawn, memory.size, generator) for name, kind in memory.patches().items()
    }
    errors: list[Tensor] = []
    distances: dict[str, list[Tensor]] = {name: [] for name in owners}
    for row in drawn[:SCALE_IMAGES]:
        features = _standardized(network, cache, row[None])
        errors.append(score_map(network.difference(features), memory.grid))
        for name, kind in memory.patches().items():
            others = owners[name] != row.to(owners[name].device)
            if others.any():
                patches = kind.patches[others]
                distances[name].append(nearest_distance(kind.describe(features), patches, lift(patches)))
    memory.typical = _typical(errors).to(memory.typical)
    for name, kind in memory.patches().items():
        kind.fill(kind.patches, _typical(distances[name]))


def _choose(
    network: ADTR, kind: Patches, cache: FeatureCache, rows: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """Fill one kind with patches of some images; of which image each is, (M,)."""
    places = cache.features.shape[1] * kind.fold**2
    each = min(places, -(-max(CANDIDATES, size) // len(rows)))
    parts = []
    for chunk in rows.split(CHUNK):
        described = kind.describe(_standardized(network, cache, chunk)).flatten(1, 2)
        drawn = torch.stack([torch.randperm(places, generator=generator)[:each] for _ in chunk]).to(described.device)
        parts.append(described.gather(1, drawn[..., None].expand(-1, -1, described.shape[-1])))
    candidates = torch.cat(parts).flatten(0, 1)
    chosen = farthest_points(candidates, size, generator)
    kind.fill(candidates[chosen], kind.typical)
    return rows.to(chosen.device)[chosen // each]


def _typical(maps: list[Tensor]) -> Tensor:
    """Mean of images' maps, and by how much their highest values exceed it in the mean, (2,)."""
    if not maps:  # a single image has no others to be compared with
        return torch.tensor([0.0, 1.0])
    values = torch.cat(maps).float()
    mean, highest = values.mean(), values.amax(dim=(1, 2)).mean()
    # Images that are all alike have nothing above the mean but rounding.
    return torch.stack([mean, (highest - mean).clamp_min(1e-3 * float(mean) + 1e-6)])


def _standardized(network: ADTR, cache: FeatureCache, rows: Tensor) -> Tensor:
    return network.standardize(cache.on(network.feature_mean.device, rows))


def farthest_points(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedy k-center: each chosen point is the one farthest from those chosen before it.

    Distances only shrink as points are chosen. So the next ones are sought on a short list of the farthest, as long as
    the farthest there is farther than anyone else was, and only then are all distances brought up to date, by one
    product for many chosen points.

    Args:
        points: (K, D).
        count: how many to choose; all where there are no more.
        generator: draws the projection and the first point.

    Returns:
        Their rows, (min(count, K),).
    """
    if len(points) <= count:
        return torch.arange(len(points), device=points.device)
    projection = torch.randn(points.shape[1], PROJECTION, generator=generator).to(points)
    projected = points @ projection if points.shape[1] > PROJECTION else points
    norms = projected.square().sum(dim=1)
    nearest = torch.full_like(norms, torch.inf)
    chosen = torch.randint(len(points), (1,), generator=generator).to(points.device)
    latest = chosen
    while len(chosen) < count:
        squares = norms + torch.addmm(norms[latest], projected, projected[latest].T, alpha=-2).amin(dim=1)
        nearest = torch.minimum(nearest, squares)
        nearest[latest] = -torch.inf
        farthest, listed = nearest.topk(min(SHORT_LIST, len(points)))
        picked = _farthest_first(projected[listed], farthest, float(farthest[-1]), min(AT_ONCE, count - len(chosen)))
        latest = listed[picked]
        chosen = torch.cat([chosen, latest])
    return chosen


def _farthest_first(points: Tensor, nearest: Tensor, least: float, count: int) -> Tensor:
    """The next of a greedy choice among points (K, D) of such squared distances (K,), while those are at least `least`.

    Returns:
        Their rows: at most `count`, and at least the farthest.
    """
    norms = points.square().sum(dim=1)
    picked: list[Tensor] = []
    while len(picked) < count:
        farthest, latest = nearest.max(dim=0)
        if picked and float(farthest) < least:
            break
        picked.append(latest)
        nearest = torch.minimum(nearest, norms + norms[latest] - 2 * (points @ points[latest]))
        nearest[latest] = -torch.inf
    return torch.stack(picked)
