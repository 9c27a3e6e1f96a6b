"""The quality of the recipes' models, beside those of other libraries' defaults."""
