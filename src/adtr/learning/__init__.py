"""What `fit` and `improve` do: from images to a network, its thresholds, and a record of how they came about."""
