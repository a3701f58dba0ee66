"""Evaluate published models again, and compare the figures with the published ones."""
