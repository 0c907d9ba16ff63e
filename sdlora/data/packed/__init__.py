"""Datasets packed into few large files: webdataset tar shards and parquet files. `unpack.unpack` makes folders."""
