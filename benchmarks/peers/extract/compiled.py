"""transformers through torch.compile with dynamic lengths, one by one. The first pass compiles."""

from functools import partial

from peers.extract import PRECISIONS, Extract, Extractor, Job, save_each
from peers.extract.transformers import feature_extractor, last_hidden_states


def load(precision: str, job: Job) -> Extract:
    """torch.compile(dynamic=True): one compilation for all lengths."""
    import torch

    model, prepare = last_hidden_states(job, precision), feature_extractor(job)
    compiled, dtype = torch.compile(model, dynamic=True), getattr(torch, precision)
    return save_each(job, lambda samples: compiled(prepare([samples])["input_values"].to(job.device, dtype))[0])


EXTRACTORS = [
    Extractor(f"torch.compile, one by one, {precision}", "peer", partial(load, precision), (), precision)
    for precision in PRECISIONS
]
