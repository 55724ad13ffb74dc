"""What other frameworks need to use this package: a module for each, which imports it inside functions."""
