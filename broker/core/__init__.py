"""The pure core: entries and their bytes, offsets, pages, the producer rule, and `apply`. No await, no clock, no disk."""
