"""New adapters out of others: mix, merge, extract, resize, convert, compare."""
