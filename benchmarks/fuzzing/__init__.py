"""Hostile inputs for everything that adtr reads: how they are made, and what they are given to."""
