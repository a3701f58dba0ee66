"""Evaluate beyond scores: compute the figures of reports, and scores on corrupted images."""
