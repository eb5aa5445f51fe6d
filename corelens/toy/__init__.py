"""The models that come with corelens, the pictures they are asked about, and how they were trained."""
