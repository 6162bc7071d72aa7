"""What this machine reaches, beside what others reach on it and beside the limit."""
