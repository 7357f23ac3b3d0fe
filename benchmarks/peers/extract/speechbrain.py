"""SpeechBrain: its HuBERT wrapper as a dynamic item cached in HDF5, its own way to keep what is expensive; one by one."""

from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from peers.extract import Extract, Extractor, Finished, Job


def load(job: Job) -> Extract:
    """CachedHDF5DynamicItem over read_audio and HuBERT(freeze=True)."""
    import torch
    from speechbrain.dataio.dataio import read_audio
    from speechbrain.dataio.dataset import DynamicItemDataset
    from speechbrain.integrations.hdf5.cached_item import CachedHDF5DynamicItem
    from speechbrain.integrations.huggingface.hubert import HuBERT
    from speechbrain.utils.data_pipeline import provides, takes

    model = HuBERT(job.checkpoint, mkdtemp(), freeze=True).eval().to(job.device)
    entries = {audio.id: {"wav": str(audio.file)} for audio in job.utterances}

    def extract(folder: Path) -> Finished:
        @CachedHDF5DynamicItem.cache(folder)
        @takes("id", "wav")
        @provides("features")
        def features(name: str, wav: str) -> np.ndarray:
            with torch.inference_mode():
                return model(read_audio(wav)[None].to(job.device))[0].cpu().numpy()

        dataset = DynamicItemDataset(entries, dynamic_items=[features], output_keys=["id", "features"])
        for _ in dataset:
            pass
        features.change_file_mode("r")
        return Finished(lambda name: features.hdf5file[name][:])

    return extract


EXTRACTORS = [Extractor("SpeechBrain HuBERT, cached in HDF5", "peer", load, ("speechbrain", "h5py"))]
