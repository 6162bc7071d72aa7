"""Results as immutable rows, their statistics, and the tables, plots and pages made of them."""
