"""Prepared data: the same bytes in a few Parquet files of which each image is one range."""
