"""A complete run on real photographic textures with planted defects."""
