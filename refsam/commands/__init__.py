"""The commands of `refsam`, a file for each family. They answer fast: what is heavy is imported when used."""
