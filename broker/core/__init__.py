"""The pure core: entries and their bytes, offsets, pages, the producer rule, `apply`. No await, no clock, no disk."""
