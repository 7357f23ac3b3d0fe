"""Training adapters on cached features. It imports encodeonce.store alone: no speech encoder is ever loaded here."""
