"""Evidence of trusted execution environments: what it says, and whether to believe it.

Platform ``virtual`` only, for now: it proves nothing and says so.
"""
