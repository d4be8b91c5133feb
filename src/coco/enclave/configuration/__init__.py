"""Configuration state: the constitution's lists, the actors, keys and epochs, recovery. Sans-I/O.

There is no governance by vote yet: the genesis decides.
"""
