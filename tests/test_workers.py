"""Several devices, a Dask cluster, ranks: what many processes make is, byte for byte, what one makes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES
from commands import contents, extract, feature_store, write_corpus
from encodeonce.extract import cluster, processes, worker
from encodeonce.extract.batching import Cutting
from encodeonce.extract.cache import FileCache
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.encode import BatchEncoder, DeviceError
from encodeonce.extract.encoders.base import EncoderError, LoadedEncoder
from encodeonce.extract.job import extract_split
from encodeonce.extract.ledger import Ledger
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import Request
from encodeonce.extract.run import Run
from encodeonce.extract.tasks import ShardTask
from encodeonce.extract.worker import Order, ShardWorker
from sick_device import sick_work

LENGTHS = [0.4, 1.3, 0.7, 2.0, 0.55, 1.0, 0.8, 1.6, 0.6, 1.1, 0.9, 1.8]
SHARDS = ("--shard-frames", "64", "--dtype", "int8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder / "dev", LENGTHS)
    (folder / "dev" / "broken.wav").write_bytes(b"no audio")
    return folder


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "small-hubert"
    FAMILIES["hubert-base"].model().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def alone(data: Path, hubert: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process with one thread makes."""
    store = tmp_path_factory.mktemp("alone")
    done = extract(data, "dev", store, *SHARDS, encoder=hubert)
    assert (done.status, done.counts()) == (1, (12, 0, 0, 1))
    return contents(store)


def request_for(data: Path, hubert: str, store: Path, device: str = "cpu") -> Request:
    return Request(hubert, ("dev",), data=data, store=store, shard_frames=64, dtype="int8", device=device)


def kill_one(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kill a device's worker as it is given its third shard."""
    killed: list[int] = []
    give, given = processes.Processes._give, []

    def giving(self, worker, waiting):
        before = len(waiting)
        give(self, worker, waiting)
        given.extend([worker] * (before - len(waiting)))
        if given.count(worker) == 3 and not killed:
            killed.append(worker.process.pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(processes.Processes, "_give", giving)
    return killed


def test_a_dead_device_worker_is_taken_over(data, hubert, tmp_path, alone, monkeypatch):
    run = Run(request_for(data, hubert, tmp_path / "s", device="cpu,cpu"), Progress(), FileCache())
    killed = kill_one(monkeypatch)
    with processes.Processes(run, run.devices()) as maker:
        report = extract_split(run, "dev", maker)
        assert len(maker._workers) == 1
    assert len(killed) == 1
    assert (report.encoded, report.failed, report.workers) == (12, 1, 2)
    assert contents(tmp_path / "s") == alone


def test_a_device_that_fails_is_taken_over(data, hubert, tmp_path, alone, monkeypatch, capsys):
    run = Run(request_for(data, hubert, tmp_path / "s", device="cpu,cpu"), Progress(), FileCache())
    monkeypatch.setattr(processes, "work", sick_work)
    with processes.Processes(run, run.devices()) as maker:
        assert extract_split(run, "dev", maker).encoded == 12
        assert len(maker._workers) == 1
    told = r"cpu has ended (small-hubert in float32 failed on a batch of 1 utterances, "
    assert told in (said := capsys.readouterr().err)
    assert "CUDA out of memory. Tried to allocate 2 GiB.; try a smaller --batch-seconds); the others take over" in said
    assert contents(tmp_path / "s") == alone


@pytest.mark.parametrize(("device", "kind"), [("cpu", EncoderError), ("cuda:1", DeviceError)])
def test_what_fails_on_a_processor_would_fail_on_any(device, kind):
    batch: Any = SimpleNamespace(device=device, encoder=SimpleNamespace(name="e"), precision="float32")
    told = r"^e in float32 failed on a batch: no; try a smaller --batch-seconds$"
    with pytest.raises(EncoderError, match=told) as raised, BatchEncoder.failing_plainly(batch, "a batch"):
        raise RuntimeError("no\nreally")
    assert type(raised.value) is kind


@pytest.mark.parametrize(("device", "kind"), [("cpu", EncoderError), ("cuda", DeviceError)])
def test_a_gpu_without_room_for_the_encoder_may_be_taken_over(data, hubert, tmp_path, monkeypatch, device, kind):
    def load(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    run = Run(request_for(data, hubert, tmp_path / "s"), Progress(quiet=True), FileCache())
    monkeypatch.setattr(run, "find_device", lambda: device)
    monkeypatch.setattr(type(run.encoder), "load", load)
    with pytest.raises(EncoderError, match=rf"cannot be loaded on {device}: CUDA out of memory") as raised:
        run.load_in("float32", [])
    assert type(raised.value) is kind


def test_ctrl_c_while_workers_start_is_one_line(data, hubert, tmp_path):
    command = [
        sys.executable,
        "-m",
        "encodeonce.extract.cli",
        "--encoder",
        hubert,
        "--split",
        "dev",
        "--data",
        str(data),
    ]
    command += ["--device", "cpu,cpu", "--store", str(tmp_path / "s")]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while run.poll() is None and len(children.read_text().split()) < 3:  # one of them tracks resources
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert (run.returncode, "Traceback" in said) == (130, False), said


def test_what_ends_every_worker_ends_the_run_and_what_is_finished_is_kept(data, hubert, tmp_path, alone, monkeypatch):
    run = Run(request_for(data, hubert, tmp_path / "s", device="cpu,cpu"), Progress(quiet=True), FileCache())
    monkeypatch.setattr(processes, "DEATHS", 1)
    kill_one(monkeypatch)
    told = r"shard \d+ ended 1 workers, the last on cpu \(SIGKILL"
    with processes.Processes(run, run.devices()) as maker, pytest.raises(EncoderError, match=told):
        extract_split(run, "dev", maker)
    assert not list((tmp_path / "s").rglob(".tmp*"))
    monkeypatch.undo()
    kept = sum(json.loads(path.read_text())["utterances"] for path in (tmp_path / "s").rglob("commits/*.json"))
    done = extract(data, "dev", tmp_path / "s", *SHARDS, encoder=hubert)
    assert done.split["reused"] == kept < 12
    assert contents(tmp_path / "s") == alone


def test_a_dask_worker_killed_in_the_middle_changes_nothing(data, hubert, tmp_path, alone, monkeypatch):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=4, threads_per_worker=1, processes=True, dashboard_address=None) as workers,
        Client(workers) as client,
    ):
        killed, taken, take_in = [], [], Ledger.take_in

        def taking(self, finished):
            take_in(self, finished)
            taken.append(finished)
            if len(taken) == 2:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        monkeypatch.setattr(Ledger, "take_in", taking)
        done = extract(data, "dev", tmp_path / "s", *SHARDS, "--dask", workers.scheduler_address, encoder=hubert)
        assert (done.status, done.counts()) == (1, (12, 0, 0, 1)), done.err
        assert len(killed) == 1
        assert "Workers of the Dask cluster: 4, with 4 threads" in done.err
    assert contents(tmp_path / "s") == alone
    assert feature_store("verify", tmp_path / "s").status == 0


@pytest.fixture
def two_threads() -> Iterator[Any]:
    """A Dask cluster in this process, of one worker."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as workers:
        yield workers


SICK = "e in float16 failed on a batch of 1 utterances: CUDA error: unspecified launch failure; try a smaller --batch-seconds"


def sicken(monkeypatch: pytest.MonkeyPatch, workers: int, when: str) -> None:
    """Let the GPUs of the first Dask workers that load fail, all in this process, while they load or make."""
    from distributed import get_worker

    healthy, sick = cluster.worker_for, set[str]()

    def fail(*_: object) -> None:
        raise DeviceError(SICK)

    def worker_for(order: Order) -> Any:
        if len(sick) < workers:
            sick.add(get_worker().address)
        if get_worker().address not in sick:
            return healthy(order)
        return SimpleNamespace(load=fail if when == "load" else lambda: None, make=fail)

    monkeypatch.setattr(cluster, "worker_for", worker_for)


@pytest.mark.parametrize("when", ["load", "make"])
def test_a_dask_worker_whose_gpu_fails_is_taken_out(data, hubert, tmp_path, alone, monkeypatch, when):
    from distributed import LocalCluster

    sicken(monkeypatch, 1, when)
    run = Run(request_for(data, hubert, tmp_path / "s"), progress := Heard(), FileCache())
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as workers:
        with cluster.Cluster(run, workers.scheduler_address) as maker:
            assert extract_split(run, "dev", maker).encoded == 12
        assert len(workers.scheduler.workers) == 1
    told = f"a worker on {socket.gethostname()} failed: {SICK}; the worker is taken out of the cluster, and the others take over"
    assert progress.lines.count(told) == 1
    assert sum(progress.steps) == pytest.approx(sum(LENGTHS), abs=0.01)
    assert contents(tmp_path / "s") == alone


def test_where_the_only_gpu_of_a_cluster_fails_the_run_ends(data, hubert, tmp_path, two_threads, monkeypatch):
    sicken(monkeypatch, 1, "make")
    run = Run(request_for(data, hubert, tmp_path / "s"), Heard(), FileCache())
    told = f"^a worker on {socket.gethostname()} failed: {SICK}; no other worker is there; everything finished so far is kept$"
    with cluster.Cluster(run, two_threads.scheduler_address) as maker, pytest.raises(EncoderError, match=told):
        extract_split(run, "dev", maker)


def test_a_shard_on_which_a_second_gpu_fails_ends_the_run():
    there: Any = SimpleNamespace(nthreads=lambda: {"sick": 1, "healthy": 1})
    maker: Any = SimpleNamespace()
    with pytest.raises(EncoderError, match=r"^why; another GPU failed with the same shard before; everything finished"):
        cluster.Cluster._take_out(maker, "sick", cluster.Fault("why"), there, last=True)


class Heard(Progress):
    """Lines, and samples that were told of as done."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.steps: list[float] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, seconds: float, note: str = "") -> None:
        self.steps.append(seconds)


def test_when_the_last_dask_worker_goes_the_run_says_so_and_waits(
    data, hubert, tmp_path, alone, two_threads, monkeypatch
):
    class Rescue(Heard):
        def say(self, line: str) -> None:
            super().say(line)
            if line.startswith("No worker"):
                two_threads.scale(1)

    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "TELL_SECONDS", 0.0)
    progress, take_in = Rescue(), Ledger.take_in

    def taking(self, finished):
        take_in(self, finished)
        if not any(line.startswith("No worker") for line in progress.lines):
            two_threads.scale(0)
            while two_threads.scheduler.workers:
                time.sleep(0.01)

    monkeypatch.setattr(Ledger, "take_in", taking)
    run = Run(request_for(data, hubert, tmp_path / "s"), progress, FileCache())
    with cluster.Cluster(run, two_threads.scheduler_address) as maker:
        report = extract_split(run, "dev", maker)
        assert maker.stages.threads == {"decode": 2, "encode": 2, "keep": 2, "write": 4}
    assert (report.encoded, report.failed, report.workers) == (12, 1, 1)
    there = "Workers of the Dask cluster: 1, with 2 threads; others may join while it runs"
    told = [line for line in progress.lines if "Dask cluster" in line]
    assert told == [
        there,
        f"No worker of the Dask cluster is left; waiting 300 s for others (dask worker {maker.address})",
        there,
    ]
    assert sum(progress.steps) == pytest.approx(sum(LENGTHS), abs=0.01)
    assert len(progress.steps) > len(list((tmp_path / "s").rglob("commits/*.json")))  # within shards, too
    assert contents(tmp_path / "s") == alone


def test_where_no_dask_worker_comes_back_the_run_ends(data, hubert, tmp_path, two_threads, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "WORKER_SECONDS", 0.5)
    monkeypatch.setattr(Ledger, "take_in", lambda self, finished: two_threads.scale(0))
    run = Run(request_for(data, hubert, tmp_path / "s"), Heard(), FileCache())
    told = (
        r"every worker of the Dask cluster is gone, and none came in 0 s; .* \(dask worker inproc://.*\) and run again"
    )
    with cluster.Cluster(run, two_threads.scheduler_address) as maker, pytest.raises(EncoderError, match=told):
        extract_split(run, "dev", maker)


def test_a_disk_of_a_dask_worker_that_fails_is_told_with_its_name(data, hubert, tmp_path, two_threads, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/store/.tmp")

    monkeypatch.setattr(worker, "stage", full)
    run = Run(request_for(data, hubert, tmp_path / "s"), Heard(), FileCache())
    told = rf"^a worker on {socket.gethostname()} failed: \[Errno 28\] No space left on device: '/store/.tmp'$"
    with cluster.Cluster(run, two_threads.scheduler_address) as maker, pytest.raises(EncoderError, match=told):
        extract_split(run, "dev", maker)


def test_dask_ends_no_local_worker_for_its_memory(data, hubert, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "cores", lambda: 1)
    with cluster.Cluster(Run(request_for(data, hubert, tmp_path / "s"), Heard(), FileCache()), "local") as maker:
        client = maker._client = maker._local()
        client.wait_for_workers(1)
        assert [worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()] == [0]


class Watched(LoadedEncoder):
    """Frames of nothing; counts how many threads are at it."""

    def __init__(self) -> None:
        self.at_it, self.most, self.lock = 0, 0, Lock()

    def forward(self, audio: torch.Tensor, lengths: Any) -> dict[str, torch.Tensor]:
        with self.lock:
            self.at_it += 1
            self.most = max(self.most, self.at_it)
        time.sleep(0.02)
        with self.lock:
            self.at_it -= 1
        return {"last": torch.zeros(len(lengths), 100, 1)}


@pytest.mark.parametrize(("parallel", "most"), [(False, 1), (True, 3)])
def test_threads_take_turns_at_an_encoder_that_takes_one_at_a_time(data, hubert, tmp_path, parallel, most):
    run, loaded = Run(request_for(data, hubert, tmp_path / "s"), Heard(), FileCache()), Watched()
    run.encoder.parallel = parallel
    batch = BatchEncoder(run.encoder, loaded, Cutting(60, 5), "float32", lambda: loaded)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(batch.encode, [[np.zeros(16_000, np.float32)]] * 9))
    assert loaded.most == most


def test_a_dask_worker_that_does_not_see_the_audio_fails_nothing_but_the_run():
    utterances = {name: Utterance(name, Path("/not/here") / name) for name in ("a", "b")}
    task = ShardTask(0, 0, (), utterances, (), {})
    nothing: Any = None
    with pytest.raises(EncoderError, match=r"does not see /not/here/b, which is there for the run"):
        cluster.make(nothing, task, nothing, unseen=frozenset({"a"}), topic="")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CancelledError("scheduler-connection-lost"), "the scheduler at tcp://there is gone"),
        (OSError("Timed out"), "the scheduler at tcp://there is gone"),
        (ModuleNotFoundError("no encodeonce"), "a worker failed with shard 3: ModuleNotFoundError: no encodeonce"),
        (EncoderError("as it is"), "^as it is$"),
    ],
)
def test_what_goes_wrong_in_a_cluster_is_told_in_a_line(data, hubert, tmp_path, error, told):
    run = Run(request_for(data, hubert, tmp_path / "s"), Progress(quiet=True), FileCache())
    with pytest.raises(EncoderError, match=told), cluster.Cluster(run, "tcp://there")._told("with shard 3"):
        raise error


def test_three_ranks_started_at_once_make_the_same(data, hubert, tmp_path, alone):
    command = [
        sys.executable,
        "-m",
        "encodeonce.extract.cli",
        "--encoder",
        hubert,
        "--split",
        "dev",
        "--data",
        str(data),
    ]
    command += [*SHARDS, "--store", str(tmp_path / "s"), "--rank", "auto", "--quiet", "--json"]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_NTASKS": "3", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    outs = [process.communicate(timeout=120) for process in started]
    assert sorted(process.returncode for process in started) == [0, 0, 1], outs  # rank 0 answers for the broken file
    assert contents(tmp_path / "s") == alone
    again = extract(data, "dev", tmp_path / "s", *SHARDS, "--rank", "1", "--world-size", "3", encoder=hubert)
    assert again.split["reused"] == again.split["utterances"]


def test_a_worker_with_other_weights_is_refused(data, hubert, tmp_path):
    run = Run(request_for(data, hubert, tmp_path / "s"), Progress(quiet=True), FileCache())
    identity = {**run.feature_set.identity, "weights": "0" * 64}
    with pytest.raises(EncoderError, match="another encoder here than where the run was started: weights"):
        ShardWorker(Order(run.request, identity, ()), Progress(quiet=True))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dask", "tcp://127.0.0.1:9"], "no scheduler answers there (Timed out"),
        (["--dask", "foo"], "'foo'); give local, or the address that dask scheduler prints, such as tcp://host:8786"),
        (["--dask", "localhost:port"], "no scheduler answers there (invalid literal"),
        (["--dask", "foo://localhost:8786"], "no scheduler answers there (unknown address scheme 'foo'"),
        (["--dask", "tls://127.0.0.1:9"], "no scheduler answers there (TLS expects"),
        (["--device", "cpu,gpu"], "take auto, cpu, cuda, cuda:N, several such as cuda:0,cuda:1, or all"),
        (["--rank", "3", "--world-size", "3"], "ranks are 0 to 2"),
        (["--rank", "0", "--world-size", "0"], "--world-size 0: take 1 or more"),
        (["--rank", "1"], "belong together"),
        (["--rank", "auto"], "the environment has none of"),
        (["--rank", "0", "--world-size", "2", "--dask", "local"], "give one of the two"),
    ],
)
def test_bad_requests_are_told(data, tmp_path, options, told, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr("distributed.Client", None)  # it would be left behind half built
    done = extract(data, "dev", tmp_path / "s", *options)
    assert (done.status, told in done.err) == (2, True), done.err
    assert not (tmp_path / "s").exists()


def test_what_listens_and_is_no_scheduler_is_told(data, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        done = extract(data, "dev", tmp_path / "s", "--dask", f"tcp://127.0.0.1:{mute.getsockname()[1]}")
    assert (done.status, "no scheduler answers there" in done.err) == (2, True), done.err
