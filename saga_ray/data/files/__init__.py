"""Images as their owners keep them: folders, archives and Parquet files, here or behind an address."""
