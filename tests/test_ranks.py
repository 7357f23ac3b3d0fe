"""Which share is whose, as job managers say it."""

import pytest
from encodeonce.extract.ranks import RankError, from_environment, local_rank, member_of
from encodeonce.store.hold import Member
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, (0, 4)),
        ({"PMI_RANK": "2", "PMI_SIZE": "3"}, (2, 3)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3"}, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "RANK": "5", "WORLD_SIZE": "16"}, (5, 16)),  # torchrun under srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_PROCID": "x", "SLURM_NTASKS": "8", "RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
    ],
)
def test_what_the_environment_says(environment, found):
    assert from_environment(environment) == found


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 9), st.integers(1, 3))
def test_the_tasks_of_a_slurm_array_share_everything(elements, tasks, first, step):
    shares = [
        from_environment(
            {
                "SLURM_ARRAY_TASK_ID": str(first + step * element),
                "SLURM_ARRAY_TASK_COUNT": str(elements),
                "SLURM_ARRAY_TASK_MIN": str(first),
                "SLURM_ARRAY_TASK_STEP": str(step),
                "SLURM_PROCID": str(task),
                "SLURM_NTASKS": str(tasks),
            }
        )
        for element in range(elements)
        for task in range(tasks)
    ]
    assert sorted(shares) == [(rank, elements * tasks) for rank in range(elements * tasks)]


def test_members():
    assert member_of(None, None, {}) is None
    assert member_of("0", 1, {}) is None
    assert member_of("2", 3, {}) == Member(2, 3)
    assert member_of("auto", None, {"RANK": "1", "WORLD_SIZE": "2"}) == Member(1, 2)
    for rank, size in ((None, 2), ("1", None), ("3", 3), ("-1", 3), ("one", 3), ("auto", 3)):
        with pytest.raises(RankError):
            member_of(rank, size, {"RANK": "0", "WORLD_SIZE": "2"})


def test_local_rank():
    assert local_rank({}) is None
    assert local_rank({"LOCAL_RANK": "3"}) == 3
    assert local_rank({"SLURM_LOCALID": "0", "LOCAL_RANK": "3"}) == 3


def test_an_array_that_is_no_even_range_is_refused():
    listed = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    with pytest.raises(RankError, match="--array=0-2"):
        from_environment(listed)
