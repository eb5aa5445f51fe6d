"""How the models that come with corelens were trained. A recipe of the repository; it is not installed."""
