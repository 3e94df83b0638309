"""What of the documentation is made from the code, the benchmarks and the notebooks: Markdown, written before Sphinx reads it."""
