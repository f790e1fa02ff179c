"""The settings: `schema` declares them, `sources` reads them from files, environment and flags."""
