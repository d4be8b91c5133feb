"""Configuration state: the constitution's lists, the actors, keys and epochs, recovery. Sans-I/O.

Governance by vote comes with the third issue; until then the genesis decides.
"""
