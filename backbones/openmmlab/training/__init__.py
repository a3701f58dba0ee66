"""mmengine's runner, made to lose nothing: exact resumption, faults, processes, progress."""
