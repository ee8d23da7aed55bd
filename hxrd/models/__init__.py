"""Networks, their files and their preprocessing."""
