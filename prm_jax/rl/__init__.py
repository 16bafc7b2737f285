"""The pure math of the method: arrays and callables in, arrays out."""
