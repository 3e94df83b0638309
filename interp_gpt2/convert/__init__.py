"""Whole models in and out of other libraries, exactly or not at all."""
