"""sweep-adapters: many trainings and evaluations over one store, one table."""
