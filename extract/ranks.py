"""Which share of a split is whose, where a job manager starts the same command several times."""

import os
from collections.abc import Mapping

from encodeonce.store.hold import Member

FROM_ENVIRONMENT = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)
"""Variables of rank and world size: Open MPI, MPICH, torchrun, SLURM's tasks. What was started last, inside the others, first."""
ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "LOCAL_RANK", "SLURM_LOCALID")


class RankError(Exception):
    """Ranks that cannot be; the message says the way out."""


def member_of(rank: str | None, world_size: int | None, environment: Mapping[str, str] = os.environ) -> Member | None:
    """Whose share a run makes: that of a rank, or None for all of it.

    Args:
        rank: a number, or `auto` for what the environment says.

    Raises:
        RankError: only one of the two, or a world size below 1, or a rank that is not below it.
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
    if world_size < 1:
        raise RankError(f"--world-size {world_size}: take 1 or more, as many as there are processes")
    if not 0 <= rank < world_size:
        raise RankError(f"--rank {rank} of --world-size {world_size}: ranks are 0 to {world_size - 1}")
    return Member(rank, world_size) if world_size > 1 else None


def from_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    """Rank and world size as job managers say them. Every task of every element of a SLURM array counts.

    Raises:
        RankError: nothing says them, or an array is no even range.
    """
    within = next((pair for names in FROM_ENVIRONMENT if (pair := _numbers(environment, *names))), None)
    array = _numbers(environment, *ARRAY)
    if array is not None:
        element, elements = _element(environment, *array)
        rank, size = within or (0, 1)
        return element * size + rank, elements * size
    if within is not None:
        return within
    names = ", ".join(f"{rank} and {size}" for rank, size in (*FROM_ENVIRONMENT, ARRAY))
    raise RankError(f"--rank auto: the environment has none of {names}; give --rank and --world-size as numbers")


def _element(environment: Mapping[str, str], number: int, count: int) -> tuple[int, int]:
    first, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default)) for name, default in (("MIN", 0), ("STEP", 1))
    )
    element, rest = divmod(number - first, max(1, step))
    if rest or not 0 <= element < count:
        raise RankError(
            f"--rank auto: element {number} of a SLURM array of {count} from {first} in steps of {step} is none of an even range; take "
            f"such as --array=0-{count - 1}, or give --rank and --world-size as numbers"
        )
    return element, count


def _numbers(environment: Mapping[str, str], rank: str, size: str) -> tuple[int, int] | None:
    try:
        return int(environment[rank]), int(environment[size])
    except (KeyError, ValueError):
        return None


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Which of the processes of this machine this is, as a job manager says it."""
    return next((int(environment[name]) for name in LOCAL_RANKS if environment.get(name, "").isdigit()), None)
