"""What the broker can carry, beside what the same machine can do without it. See README.md here."""
