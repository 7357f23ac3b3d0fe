"""What a request asks to make its shards with."""

from encodeonce.extract.makers import Here, Maker
from encodeonce.extract.run import Run


def maker_of(run: Run) -> Maker:
    """This process, one for each of several devices, or a Dask cluster."""
    if run.request.dask is not None:
        from encodeonce.extract.cluster import Cluster

        return Cluster(run, run.request.dask)
    several = run.request.device == "all" or "," in run.request.device
    if several and len(run.devices()) > 1:
        from encodeonce.extract.processes import Processes

        return Processes(run, run.devices())
    return Here(run)
