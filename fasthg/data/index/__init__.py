"""The annotations of a data set as arrays, read once, kept, and mapped by later runs."""
