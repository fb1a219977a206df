"""The export room: from a trained network to files for phones, and the proof that they agree with it."""
