"""Read the variables by which launchers tell a process its rank and their number."""

import os

# The variable in which each launcher gives the number of ranks.
PROCESS_COUNTS = dict(pytorch="WORLD_SIZE", slurm="SLURM_NTASKS", mpi="OMPI_COMM_WORLD_SIZE")
# And that in which it tells each process its rank.
RANKS = dict(pytorch="RANK", slurm="SLURM_PROCID", mpi="OMPI_COMM_WORLD_RANK")


def process_count(launcher: str) -> int:
    """Return how many ranks a launcher has started, 1 for `none`."""
    return int(os.environ.get(PROCESS_COUNTS.get(launcher, ""), 1))


def rank_of(launcher: str | None) -> int:
    """Return the rank of this process, known before ranks can talk to one another.

    Args:
        launcher: a key of `RANKS`; None for whichever has set its variable; 0 for any other.
    """
    variables = RANKS.values() if launcher is None else [RANKS.get(launcher, "")]
    return next((int(os.environ[name]) for name in variables if name in os.environ), 0)
