"""The control socket: how an operator's tool talks to a running server. Knows no arbiter."""
