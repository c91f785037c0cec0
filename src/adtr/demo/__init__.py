"""A complete run on real photographic textures with planted defects."""

TEXTURES = ("brick", "gravel", "grass")
"""The photographs to choose from; 512 x 512, gray, shipped by scikit-image. Brick is regular, the others are not."""
