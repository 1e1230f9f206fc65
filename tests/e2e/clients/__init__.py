"""Clients that others wrote, unchanged and pinned, against a real broker.

Each `.mjs` file is a program for one client; `tests.e2e.clients.node` runs it and reads what it says, one JSON value a
line. What they claim is checked on the Python side, against what was asked of them.
"""
