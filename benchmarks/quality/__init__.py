"""How good the recipes' models are, beside those of other libraries' defaults."""
