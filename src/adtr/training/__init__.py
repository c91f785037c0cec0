"""Fitting the reconstruction to good images."""
