"""The Prefect flow `pipeline`: one task run per DVC stage."""
