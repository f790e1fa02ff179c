"""How the arbiter and its workers talk: messages (pure) over a framed socket pair."""
