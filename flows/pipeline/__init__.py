"""Run the stages as the Prefect flow `pipeline`: one task run per DVC stage."""
