"""Check a config against its data and this machine before anything expensive starts."""
