"""Between HTTP events and applications."""
