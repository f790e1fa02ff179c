"""Memory that the arbiter and its workers share: the scoreboard and its rows."""
