"""Speech through a codec and back, transcribed: what is lost of the words."""
