"""Memory that the arbiter and its workers share: the scoreboard, and the layout of its rows."""
