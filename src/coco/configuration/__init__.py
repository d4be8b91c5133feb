"""Configuration state: the network's constitution, actors, nodes and settings, and the proposals that change them.

Pure: rows in, rows out. Nodes decide with it, and the auditor judges with it. The membership list is kept apart.
"""
