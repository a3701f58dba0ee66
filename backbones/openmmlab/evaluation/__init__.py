"""Evaluation beyond scores: the figures of reports, and scores on corrupted images."""
