"""Recognisers, one file for each library that runs them."""
