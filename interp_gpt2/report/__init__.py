"""A run's numbers on one page: `schema` says what they are, `page` renders them to report.html and report.json."""
