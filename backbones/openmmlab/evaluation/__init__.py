"""Scores: COCO AP, boundaries, and what is left of them on corrupted images."""
