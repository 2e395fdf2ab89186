"""Strategies: ways to ensemble.  Each is a generator, so they nest."""
