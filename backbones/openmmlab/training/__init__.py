"""Train with mmengine's runner: exact resumption, fault handling, several ranks, progress."""
