"""Training of the models that ship with corelens; part of the repository, not of the installed package."""
