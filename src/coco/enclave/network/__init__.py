"""Nodes that join, leave and recover a network, and its members' governance."""
