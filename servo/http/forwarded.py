"""Placeholder until the real one is written."""
class TrustedPeers:
    def __init__(self, cidrs): pass
    def __contains__(self, host): return False
def resolve_client(*a): return None
