"""Several devices, a Dask cluster, ranks: what many processes make is, byte for byte, what one makes."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from checkpoints import FAMILIES
from commands import contents, extract, feature_store, write_corpus
from encodeonce.extract import cluster, processes
from encodeonce.extract.cache import FileCache
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.job import extract_split
from encodeonce.extract.ledger import Ledger
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import Request
from encodeonce.extract.run import Run
from encodeonce.extract.tasks import ShardTask
from encodeonce.extract.worker import Order, ShardWorker

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


def test_a_dask_worker_that_does_not_see_the_audio_fails_nothing_but_the_run():
    utterances = {name: Utterance(name, Path("/not/here") / name) for name in ("a", "b")}
    task = ShardTask(0, 0, (), utterances, (), {})
    nothing: Any = None
    with pytest.raises(EncoderError, match=r"does not see /not/here/b, which is there for the run"):
        cluster.make(nothing, task, nothing, unseen=frozenset({"a"}))


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
