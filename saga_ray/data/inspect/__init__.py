"""What a data set is, and whether it is fit for use."""
