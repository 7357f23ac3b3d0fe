"""sweep-adapters: many trainings over one store, one table."""
