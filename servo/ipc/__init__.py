"""The messages between the arbiter and its workers, and the channel that carries them."""
