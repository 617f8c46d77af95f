"""Attempts through Ray Train, and Ray's job server. The only package that imports Ray."""
