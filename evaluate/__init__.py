"""Turning trained adapters into numbers and reports. It stands on encodeonce.train and encodeonce.store."""
