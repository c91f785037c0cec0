"""What the network remembers of its training images: patches that stand for all, chosen greedily."""

from __future__ import annotations

import torch
from torch import Tensor

from adtr.errors import memory_for
from adtr.model.comparison import score_map
from adtr.model.memory import nearest_distance
from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache

CANDIDATES = 40_000
"""Patches, drawn at random, among which the remembered ones are chosen."""
CANDIDATE_IMAGES = 2_000
"""Images, drawn at random, from which they come."""
PROJECTION = 64
"""Dimensions in which candidates are compared; a random projection keeps distances nearly (Johnson-Lindenstrauss)."""
SCALE_IMAGES = 40
"""Training images on which distances are brought to the units of s(u)."""
CHUNK = 16


@memory_for("what is remembered", lower="take a smaller --memory-size or --grid-size")
@torch.no_grad()
def remember(network: ADTR, cache: FeatureCache, index: Tensor, seed: int) -> None:
    """Fill the memory of a trained network, where its configuration asks for one.

    The scale is such that s(u) and the distance of each kind have one mean over training images, each compared with the
    patches of others only. Nothing here sees a held-out image.

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
    tokens = cache.features.shape[1]
    each = min(tokens, -(-max(CANDIDATES, memory.size) // len(drawn)))
    parts = []
    for rows in drawn.split(CHUNK):
        described = memory.describe(_standardized(network, cache, rows))
        places = torch.stack([torch.randperm(tokens, generator=generator)[:each] for _ in rows]).to(described.device)
        parts.append(described.gather(2, places[None, ..., None].expand(2, -1, -1, described.shape[-1])))
    candidates = torch.cat(parts, dim=1).flatten(1, 2)
    chosen = torch.stack([farthest_points(kind, memory.size, generator) for kind in candidates])
    memory.fill(torch.stack([kind[rows] for kind, rows in zip(candidates, chosen, strict=True)]), torch.ones(2))
    owner = drawn[chosen.cpu() // each].to(candidates.device)

    errors, distances = [], []
    for row in drawn[:SCALE_IMAGES]:
        features = _standardized(network, cache, row[None])
        described = memory.describe(features)
        of_others = owner != row
        if of_others.any(dim=1).all():
            errors.append(score_map(network.difference(features), memory.grid).mean())
            distances.append(
                torch.stack(
                    [
                        nearest_distance(kind, patches[mask], squares[mask]).mean()
                        for kind, patches, squares, mask in zip(
                            described, memory.patches, memory.squares, of_others, strict=True
                        )
                    ]
                )
            )
    if distances and (mean := torch.stack(distances).mean(0)).min() > 0:
        memory.fill(memory.patches, torch.stack(errors).mean() / mean)


def _standardized(network: ADTR, cache: FeatureCache, rows: Tensor) -> Tensor:
    return network.standardize(cache[rows].to(network.feature_mean.device))


def farthest_points(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedy k-center: each chosen point is the one farthest from those chosen before it.

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
    latest = torch.randint(len(points), (1,), generator=generator).to(points.device)[0]
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    for i in range(count):
        chosen[i] = latest
        nearest = torch.minimum(nearest, norms + norms[latest] - 2 * (projected @ projected[latest]))
        nearest[latest] = -torch.inf
        latest = nearest.argmax()
    return chosen
