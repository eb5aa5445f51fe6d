"""`python -m corelens.cli`."""

from corelens.cli import app

app()
