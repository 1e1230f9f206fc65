"""The client library for readers: follow a session, fold its records into messages, keep what was read."""
