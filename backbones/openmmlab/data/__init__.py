"""Read users' data, check it against its format, and adapt configs to it."""
