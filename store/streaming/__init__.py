"""Batches of a store in random order: the plan of an epoch, the threads that read ahead, the state to resume from."""
