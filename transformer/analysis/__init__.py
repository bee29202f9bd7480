"""What finished runs say: statistics, n-gram references, plots and the report. No jax."""
