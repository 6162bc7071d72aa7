"""Studies: rows, worlds and budgets in a file; every run of it a record that is made once; statistics and a page about them."""
