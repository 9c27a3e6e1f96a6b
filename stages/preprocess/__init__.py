"""preprocess: every source image is decoded once, checked, and stored in the form that training reads fastest."""
