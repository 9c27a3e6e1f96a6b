"""The Prefect flow `sweep`: a grid or a list of settings, run with several seeds as DVC experiments, one table at the end."""
