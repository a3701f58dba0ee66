"""Data as users have it: read, held against its format, and fitted into a config."""
