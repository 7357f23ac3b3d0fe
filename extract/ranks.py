"""Which share of a split is whose, where a job manager starts the same command several times."""

import os
from collections.abc import Mapping

from encodeonce.store.hold import Member

FROM_ENVIRONMENT = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
"""Variables of rank and world size: SLURM's arrays and tasks (of both together, both count), torchrun, Open MPI, MPICH."""
LOCAL_RANKS = ("SLURM_LOCALID", "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")


class RankError(Exception):
    """Ranks that cannot be; the message says the way out."""


def member_of(rank: str | None, world_size: int | None, environment: Mapping[str, str] = os.environ) -> Member | None:
    """Whose share a run makes: that of a rank, or None for all of it.

    Args:
        rank: a number, or `auto` for what the environment says.

    Raises:
        RankError: only one of the two, or a rank that is not below the world size.
    """
    if rank is None and world_size is None:
        return None
    if rank == "auto":
        found, size = from_environment(environment)
        if world_size not in (None, size):
            raise RankError(f"--world-size {world_size}, and the environment says {size}; leave --world-size away")
        return _member(found, size)
    if rank is None or world_size is None:
        raise RankError(
            "--rank and --world-size belong together: give both, or --rank auto under SLURM, torchrun or MPI"
        )
    try:
        number = int(rank)
    except ValueError:
        raise RankError(f"--rank {rank!r}: take a number from 0, or auto") from None
    return _member(number, world_size)


def _member(rank: int, world_size: int) -> Member | None:
    if not 0 <= rank < world_size:
        raise RankError(f"--rank {rank} of --world-size {world_size}: ranks are 0 to {world_size - 1}")
    return Member(rank, world_size) if world_size > 1 else None


def from_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    """Rank and world size as a job manager says them. The tasks of every element of a SLURM array count.

    Raises:
        RankError: nothing says them.
    """
    found = [_numbers(environment, *names) for names in FROM_ENVIRONMENT]
    array, tasks = found[0], found[1]
    if array is not None:
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
        element, elements = (array[0] - first) // max(1, step), array[1]
        within, each = tasks or (0, 1)
        return element * each + within, elements * each
    for pair in found[1:]:
        if pair is not None:
            return pair
    names = ", ".join(f"{rank} and {size}" for rank, size in FROM_ENVIRONMENT)
    raise RankError(f"--rank auto: the environment has none of {names}; give --rank and --world-size as numbers")


def _numbers(environment: Mapping[str, str], rank: str, size: str) -> tuple[int, int] | None:
    try:
        return int(environment[rank]), int(environment[size])
    except (KeyError, ValueError):
        return None


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Which of the processes of this machine this is, as a job manager says it."""
    return next((int(environment[name]) for name in LOCAL_RANKS if environment.get(name, "").isdigit()), None)
