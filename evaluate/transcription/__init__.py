"""transcribe: new audio to text, encoder and all."""
